"""Registers the emoji as a seqio task: each name before its image."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from cm3leon_jax.data.sources import CAPTIONED, TracedSource, add_task
from cm3leon_jax.images import encode_png
from examples.emoji import images as emoji


def _emoji(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    # Reports here what is missing: an error inside of tf.data would lose its type.
    emoji.load_font()
    emoji.captions()

    def examples() -> Iterator[dict[str, str | bytes]]:
        for caption, pixels in emoji.images(split):
            yield {"image": encode_png(pixels), "caption": caption}

    return tf.data.Dataset.from_generator(examples, output_signature=CAPTIONED)


add_task("emoji", TracedSource(_emoji, emoji.SPLITS, provenance=emoji.provenance), image_first=False)
