"""Formats of raw data: one file each, which makes it a seqio data source of documents.

A document is an example of two features: `segments`, strings in reading order, each UTF-8 text or the bytes of an image
file, and `is_image`, which says which of them are images. An instruction has a third, `template`: the name of the
template whose fields the segments are. docs/add_a_source.md shows how to add a source; the names
below are what that takes. Only those that need seqio and TensorFlow import them.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "AnnotationsConfig": "config",
    "CAPTIONED": "base",
    "CurationConfig": "cm3leon_jax.data.curation.config",
    "DOCUMENT": "base",
    "DocumentSource": "base",
    "OUTPUT_FEATURES": "base",
    "SOURCES": "registry",
    "FolderConfig": "config",
    "InterleavedConfig": "config",
    "NamedSource": "registry",
    "RowsConfig": "config",
    "SlicedSource": "base",
    "TracedSource": "base",
    "add_documents_task": "base",
    "add_folder_task": "folder_task",
    "add_source_task": "source_task",
    "add_task": "base",
    "add_tfds_task": "tfds",
    "captioned_image": "base",
    "instruction": "base",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _PUBLIC[name] if "." in _PUBLIC[name] else f"{__name__}.{_PUBLIC[name]}"
    return getattr(importlib.import_module(module), name)
