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
        self.skipped = documents.skipped
        # Why an example, by split and number, has no image; known before the example is read.
        self.faults: dict[tuple[str, int], str] = {}

    def provenance(self) -> dict[str, str]:
        """What the data follow from."""
        return self.documents.provenance()

    def where(self, split: str, index: int) -> str:
        """Where an example comes from."""
        return self.documents.name(split, index)

    def changed_since(self, time: float) -> list[str]:
        """Files that were changed after a time, in seconds since 1970."""
        return self.documents.changed_since(time)

    def _read(self, split: str, start: int, stop: int) -> tf.data.Dataset:
        def examples() -> Iterator[dict[str, str | bytes]]:
            for index, image in self._images(split, start, stop):
                yield {"image": image, "caption": self.documents.caption(split, index)}

        return tf.data.Dataset.from_generator(examples, output_signature=CAPTIONED)

    def _images(self, split: str, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Image files in order, read in threads, a few ahead."""
        numbers = ((index, index) for index in range(start, stop))
        return mapped_ahead(lambda index: self._image(split, index), numbers, num_ahead=2 * NUM_THREADS)

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

    Args:
      name: of the task: letters, digits and underscores.
      folder: images, in all subfolders too, each with a caption in a `.txt` file of the same stem next to it, or in a
        line {"file_name": "a/b.png", "text": "..."} of a metadata.jsonl (or .csv, .parquet) in its folder or above.
      config: which captions are taken, and what is held out.
      image_first: whether the image precedes the caption.

    Raises:
      UserError: if there is no such folder, or no image with a caption in it.
    """
    documents = read_folder(Path(folder).expanduser(), config or FolderConfig())
    return add_task(name, FolderSource(documents), image_first=image_first)
