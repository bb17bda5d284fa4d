"""Registers the digits as a seqio mixture: half of the documents text first, half image first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import seqio
import tensorflow as tf

from cm3leon_jax.data.sources import add_task
from examples.digits import images as digits


def _digits(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    def copies() -> Iterator[dict[str, np.ndarray]]:
        pixels, labels = digits.load(split)
        for copy in range(digits.NUM_COPIES if split == "train" else 1):
            moved = [digits.augmented(index, copy) for index in range(len(labels))] if copy else pixels
            captions = [digits.caption(int(label), copy * len(labels) + i) for i, label in enumerate(labels)]
            yield {"image": np.stack(list(moved)), "caption": np.array(captions, np.object_)}

    # One element per copy of the data set: each crossing from Python into tf.data costs half a millisecond.
    signature = {"image": tf.TensorSpec((None, 8, 8, 1), tf.uint8), "caption": tf.TensorSpec((None,), tf.string)}
    return tf.data.Dataset.from_generator(copies, output_signature=signature).unbatch()


_NUM_DIGITS = {"train": digits.NUM_TRAIN * digits.NUM_COPIES, "validation": digits.NUM_VALIDATION}
_DIGITS = seqio.FunctionDataSource(_digits, list(_NUM_DIGITS), _NUM_DIGITS)
add_task("digits_text_first", _DIGITS, image_first=False)
add_task("digits_image_first", _DIGITS, image_first=True)
# Equal rates: text first trains text-to-image, image first trains captioning.
seqio.MixtureRegistry.add("digits", [("digits_text_first", 1.0), ("digits_image_first", 1.0)])
