"""Folders of captioned images as tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import seqio
import tensorflow as tf

from cm3leon_jax.data.sources.base import CAPTIONED, SlicedSource, add_task
from cm3leon_jax.data.sources.config import FolderConfig
from cm3leon_jax.data.sources.folder_documents import FolderDocuments, UnreadableFile, read_folder
from cm3leon_jax.threads import NUM_THREADS, mapped_ahead


class FolderSource(SlicedSource):
    """The captioned images of a folder as a data source; what of it cannot be read is skipped, not an error."""

    def __init__(self, documents: FolderDocuments) -> None:
        super().__init__(self._read, {split: len(found) for split, found in documents.splits.items()})
        self.documents = documents
        # What the reader asks of any source (data/sources/reading.py).
        self.skipped, self.where = documents.skipped, documents.name
        self.provenance, self.changed_since = documents.provenance, documents.changed_since
        # Why an example, by split and number, has no image; known before the example is read.
        self.faults: dict[tuple[str, int], str] = {}

    def _read(self, split: str, start: int, stop: int) -> tf.data.Dataset:
        def examples() -> Iterator[dict[str, str | bytes]]:
            numbers = ((index, index) for index in range(start, stop))
            # In order, though threads read them.
            images = mapped_ahead(lambda index: self._image(split, index), numbers, num_ahead=2 * NUM_THREADS)
            for index, image in images:
                yield {"image": image, "caption": self.documents.caption(split, index)}

        return tf.data.Dataset.from_generator(examples, output_signature=CAPTIONED)

    def _image(self, split: str, index: int) -> bytes:
        try:
            return self.documents.image(split, index)
        except UnreadableFile as error:
            self.faults[split, index] = str(error)
            return b""


def add_folder_task(
    name: str, folder: str | Path, config: FolderConfig | None = None, image_first: bool = False
) -> seqio.Task:
    """Registers a folder of captioned images, with the splits "train" and "validation", or those that it has.

    Each image, in all subfolders too, has a caption in a `.txt` file of the same stem next to it, or in a line
    {"file_name": "a/b.png", "text": "..."} of a metadata.jsonl (or .csv, .parquet) in its folder or above.

    Raises:
      UserError: if there is no such folder, or no image with a caption in it.
    """
    documents = read_folder(Path(folder).expanduser(), config or FolderConfig())
    return add_task(name, FolderSource(documents), image_first=image_first)
