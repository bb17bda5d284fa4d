"""CM3Leon 350M as published (arXiv 2309.02591, Table 3): 1.4T tokens, batch 8.4M, sequence 4,096.

Register your captioned pictures as a seqio mixture (see `cm3leon_jax/data/tasks.py`), then, with your mixture's name:

    cm3leon train-text-tokenizer  --config=configs/cm3leon_350m.py --workdir=DIR --config.corpus.mixture=NAME
    cm3leon train-image-tokenizer --config=configs/cm3leon_350m.py --workdir=DIR --config.corpus.mixture=NAME
    cm3leon prepare               --config=configs/cm3leon_350m.py --workdir=DIR --config.corpus.mixture=NAME
    cm3leon train                 --config=configs/cm3leon_350m.py --workdir=DIR --config.corpus.mixture=NAME
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.corpus = {}
    config.vocabulary = dict(num_text_tokens=56_320, num_masks=512)
    config.image_tokenizer = dict(resolution=256, channel_multipliers=(1, 1, 2, 4), codebook_size=8192)
    config.batch = dict(batch_size=2048, sequence_length=4096)
    config.model = dict(num_layers=24, model_dim=1024, num_heads=16)
    config.optimizer = dict(peak_learning_rate=6e-4, warmup_steps=1500)
    config.train = dict(num_tokens=1.4e12)
    return config
