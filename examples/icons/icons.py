"""Icons: two hundred thousand drawings of 32 pixels with their names, each seen once, with retrieved neighbors.

The corpus is drawn from the npm package @iconify/json, so that a concept is there in many styles and a style with many
concepts; its splits are those of `examples/icons/convert.py`.

    mkdir -p runs/icons && npm pack --pack-destination runs/icons @iconify/json@2.2.535
    tar xzf runs/icons/iconify-json-2.2.535.tgz -C runs/icons && pip install resvg-py==0.5.0
    python -m examples.icons.convert --package=runs/icons/package --output=runs/icons/data
    for command in train-text-tokenizer train-image-tokenizer train-encoder prepare train evaluate; do
      cm3leon $command --config=icons
    done
"""

from ml_collections import ConfigDict

from examples.emoji import emoji


def get_config() -> ConfigDict:
    config = emoji.get_config()
    config.corpus = dict(mixture="webdataset:runs/icons/data/icons", examples_per_shard=16_384, num_sample_images=64)
    config.vocabulary.num_text_tokens = 1024
    # One color, on white.
    config.image_tokenizer.update(in_channels=1, codebook_size=256)
    config.image_tokenizer.training.update(num_images=20_000, num_steps=4500)
    config.encoder = dict(family="tfidf", embedding_dim=2048, resolution=8)
    # Names are of three words: with one of them dropped, a query asks for something else.
    config.retrieval = dict(
        enabled=True, num_by_text=4, num_by_image=0, query_dropout=0.0, min_similarity=0.3, num_retrieved=2,
        sampling="uniform",
    )  # fmt: skip
    # Once through.
    config.train.num_tokens = 4900 * 8 * config.batch.sequence_length
    config.evaluate = dict(num_documents=400, num_retrieved=2)
    return config
