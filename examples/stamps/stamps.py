"""Stamps: the emoji model on a folder of photographs and cartoons that a Debian package installs, read in place.

`apt-get install tuxpaint-stamps-default` brings 785 PNGs, each with a caption file of the same name; the first line of
a caption file is English, the others are translations. All else in the folder is skipped and counted: SVGs, images
without a caption, captions without an image. Another language: `--config.corpus.folder.caption_line=de.utf8=`.

On 2 CPU cores: about 6 minutes in all. This shows the path from a folder to a report; so few images and steps make
colors and rough shapes, not animals.

    for command in train-text-tokenizer train-image-tokenizer prepare train inspect evaluate; do
      cm3leon $command --config=examples/stamps/stamps.py
    done
"""

from ml_collections import ConfigDict

from examples.emoji import emoji


def get_config() -> ConfigDict:
    config = emoji.get_config()
    config.corpus.mixture = "folder:/usr/share/tuxpaint/stamps"
    config.corpus.folder = dict(caption_line="first", held_out_fraction=0.05)
    # 165 of 963 are SVGs, which are not read.
    config.corpus.max_skipped_fraction = 0.25
    config.vocabulary.num_text_tokens = 1024
    config.image_tokenizer.training.num_steps = 2000
    config.retrieval = dict(enabled=False)
    config.train.num_tokens = 300 * 8 * config.batch.sequence_length
    config.train.eval_every = 100
    config.evaluate = dict(num_documents=24, prompts=("A little rabbit.", "A red apple.", "A yellow school bus."))
    return config
