"""Registers the tasks that come with the package, and those that a mixture's name spells.

A Task of this project yields documents as two features: `segments`, strings in reading order, each UTF-8 text or the
bytes of a picture file, and `is_image`, which says which of them are pictures. To add data, call `add_folder_task` or
`add_tfds_task` in a module that `config.corpus.modules` names, or register any seqio Task with `OUTPUT_FEATURES`, whose
last preprocessor may be `captioned_picture`. A folder or a TFDS builder also goes straight into
`config.corpus.mixture`, with no Python: `folder:/path/to/pictures`, `tfds:coco_captions:image:captions/text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import seqio
import tensorflow as tf

from cm3leon_jax.data import digits, emoji
from cm3leon_jax.data.sources.base import (
    CAPTIONED,
    OUTPUT_FEATURES,
    SlicedSource,
    TracedSource,
    add_task,
    captioned_picture,
)
from cm3leon_jax.data.sources.folder import add_folder_task
from cm3leon_jax.data.sources.folder_config import FolderConfig
from cm3leon_jax.data.sources.folder_documents import folder_task_name
from cm3leon_jax.data.sources.tfds import add_tfds_task
from cm3leon_jax.documents import encode_png
from cm3leon_jax.errors import UserError

__all__ = [
    "OUTPUT_FEATURES",
    "SlicedSource",
    "TracedSource",
    "add_folder_task",
    "add_tfds_task",
    "captioned_picture",
    "register_named",
]


def register_named(mixture: str, folder: FolderConfig | None = None) -> str:
    """Registers `folder:PATH`, read as `folder` says, or `tfds:BUILDER[:IMAGE_KEY:CAPTION_KEY]`.

    Returns:
      The name seqio knows it by.
    """
    kind, _, rest = mixture.partition(":")
    if kind not in ("folder", "tfds"):
        return mixture
    # seqio allows no slashes in a name, and the name becomes a folder of the corpus.
    name = folder_task_name(rest) if kind == "folder" else "tfds_" + re.sub(r"\W+", "_", rest).strip("_")
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    if kind == "folder":
        add_folder_task(name, rest, folder)
    else:
        # A version stands behind a colon, too: coco_captions/2014:1.1.0.
        found = re.fullmatch(r"([^:]+(?::[\d.*]+)?)(?::([^:]+):([^:]+))?", rest)
        if found is None:
            raise UserError(
                f"config.corpus.mixture is {mixture!r}: write tfds:BUILDER or tfds:BUILDER:IMAGE_KEY:CAPTION_KEY"
            )
        builder, image_key, caption_key = found.groups()
        add_tfds_task(name, builder, image_key or "image", caption_key or "caption")
    return name


def _digits(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    def copies() -> Iterator[dict[str, np.ndarray]]:
        pixels, labels = digits.load(split)
        for copy in range(digits.NUM_COPIES if split == "train" else 1):
            moved = [digits.augmented(index, copy) for index in range(len(labels))] if copy else pixels
            captions = [digits.caption(int(label), copy * len(labels) + i) for i, label in enumerate(labels)]
            yield {"image": np.stack(list(moved)), "caption": np.array(captions, np.object_)}

    # A whole copy at a time: each crossing from Python into tf.data costs half a millisecond.
    signature = {"image": tf.TensorSpec((None, 8, 8, 1), tf.uint8), "caption": tf.TensorSpec((None,), tf.string)}
    return tf.data.Dataset.from_generator(copies, output_signature=signature).unbatch()


_NUM_DIGITS = {"train": digits.NUM_TRAIN * digits.NUM_COPIES, "validation": digits.NUM_VALIDATION}
_DIGITS = seqio.FunctionDataSource(_digits, list(_NUM_DIGITS), _NUM_DIGITS)
add_task("digits_text_first", _DIGITS, picture_first=False)
add_task("digits_picture_first", _DIGITS, picture_first=True)
# As many documents in each order: the first order teaches drawing, the second naming.
seqio.MixtureRegistry.add("digits", [("digits_text_first", 1.0), ("digits_picture_first", 1.0)])


def _emoji(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    # What is missing is said here: an error inside of tf.data would lose its type.
    emoji.load_font()
    emoji.captions()

    def examples() -> Iterator[dict[str, str | bytes]]:
        for caption, pixels in emoji.pictures(split):
            yield {"image": encode_png(pixels), "caption": caption}

    return tf.data.Dataset.from_generator(examples, output_signature=CAPTIONED)


add_task("emoji", TracedSource(_emoji, emoji.SPLITS, provenance=emoji.provenance), picture_first=False)
