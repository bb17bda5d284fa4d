"""Folders of captioned images as tasks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import seqio

from cm3leon_jax.data.curation.config import CurationConfig
from cm3leon_jax.data.sources.base import DocumentSource, add_documents_task
from cm3leon_jax.data.sources.caption_groups import grouped
from cm3leon_jax.data.sources.config import FolderConfig, RowsConfig
from cm3leon_jax.data.sources.folder_documents import FolderDocuments, read_folder
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.unchanged import UnreadableFile
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.paths import copied
from cm3leon_jax.threads import NUM_THREADS, mapped_ahead


class FolderSource(DocumentSource):
    """The captioned images of a folder as a data source; what of it cannot be read is skipped, not an error."""

    def __init__(self, found: FolderDocuments, image_first: bool, is_sampled: bool = False) -> None:
        super().__init__({split: len(numbers) for split, numbers in found.splits.items()})
        self._found, self._image_first = found, image_first
        # What the reader asks of any source (data/sources/reading.py).
        self.skipped, self.where = found.skipped, found.name
        self.provenance, self.changed_since = found.provenance, found.changed_since
        self.is_sampled = is_sampled

    def documents(self, split: str, start: int, stop: int) -> Iterator[Document | SkippedExample]:
        numbers = ((index, index) for index in range(start, stop))
        # In order, though threads read them.
        opened = mapped_ahead(lambda index: self._document(split, index), numbers, num_ahead=2 * NUM_THREADS)
        found = (document for _, document in opened)
        return grouped(found, functools.partial(self._found.name, split), start) if self.is_sampled else found

    def _document(self, split: str, index: int) -> Document | SkippedExample:
        try:
            image = ImageSegment(self._found.image(split, index))
        except UnreadableFile as error:
            return SkippedExample(str(error))
        caption = TextSegment(self._found.caption(split, index))
        return Document((image, caption) if self._image_first else (caption, image))


def add_folder_task(
    name: str,
    folder: str | Path,
    config: FolderConfig | None = None,
    image_first: bool = False,
    rows: RowsConfig | None = None,
    curation: CurationConfig | None = None,
) -> seqio.Task:
    """Registers a folder of captioned images, with the splits "train" and "validation", or those that it has.

    Each image, in all subfolders too, has a caption in a `.txt` file of the same stem next to it, or in a line
    {"file_name": "a/b.png", "text": "..."} of a metadata.jsonl (or .csv, .parquet) in its folder or above.

    Raises:
      UserError: if there is no such folder, or no image with a caption in it.
    """
    documents = read_folder(copied(str(folder), "the folder"), config or FolderConfig(), rows, curation)
    return add_documents_task(name, FolderSource(documents, image_first, bool(rows and rows.is_sampled)))
