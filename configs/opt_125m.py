"""CM3Leon from OPT-125M's weights: its text model goes on with images (Zhang et al., arXiv 2205.01068).

The transformer is OPT-125M's: 12 layers of width 768 with biases and learned norms, 2,048 positions, its 50,272 rows of
text. Rows for image codes and marks stand behind them and begin as in a new run. Everything else is the 350M config.

With config.json, pytorch_model.bin, vocab.json and merges.txt of facebook/opt-125m in the folder OPT, PyTorch to read
the second of them (`pip install torch`), and the name of your mixture (see `cm3leon_350m.py`):

    cm3leon train-image-tokenizer --config=configs/opt_125m.py --workdir=DIR --config.corpus.mixture=NAME
    cm3leon import                --config=configs/opt_125m.py --workdir=DIR --from=OPT
    cm3leon prepare               --config=configs/opt_125m.py --workdir=DIR --config.corpus.mixture=NAME
    cm3leon train                 --config=configs/opt_125m.py --workdir=DIR --config.corpus.mixture=NAME
"""

from ml_collections import ConfigDict

from configs import cm3leon_350m


def get_config() -> ConfigDict:
    config = cm3leon_350m.get_config()
    config.vocabulary.num_text_tokens = 50_272 - 4
    # 2,048 positions hold one image beside a text, and no neighbor.
    config.retrieval.enabled = False
    config.batch.sequence_length = 2048
    config.model.update(num_layers=12, model_dim=768, num_heads=12, biases=True, norm_scale_and_bias=True)
    return config
