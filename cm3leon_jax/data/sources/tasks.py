"""Registers the tasks that come with the package, and those that a mixture's name spells.

A Task of this project yields documents as two features: `segments`, strings in reading order, each UTF-8 text or the
bytes of an image file, and `is_image`, which says which of them are images. To add data, call `add_folder_task` or
`add_tfds_task` in a module that `config.corpus.modules` names, or register any seqio Task with `OUTPUT_FEATURES`, whose
last preprocessor may be `captioned_image`. A folder or a TFDS builder also goes straight into
`config.corpus.mixture`, with no Python: `folder:/path/to/images`, `tfds:coco_captions:image:captions/text`.
"""

from __future__ import annotations

import re

import seqio

from cm3leon_jax.data.sources.base import (
    OUTPUT_FEATURES,
    SlicedSource,
    TracedSource,
    captioned_image,
)
from cm3leon_jax.data.sources.config import FolderConfig
from cm3leon_jax.data.sources.folder import add_folder_task
from cm3leon_jax.data.sources.folder_documents import folder_task_name
from cm3leon_jax.data.sources.tfds import add_tfds_task
from cm3leon_jax.errors import UserError

__all__ = [
    "OUTPUT_FEATURES",
    "SlicedSource",
    "TracedSource",
    "add_folder_task",
    "add_tfds_task",
    "captioned_image",
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
