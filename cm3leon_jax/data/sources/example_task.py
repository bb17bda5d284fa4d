"""Examples of folders as downloaded as seqio tasks."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import seqio

from cm3leon_jax.data.sources.base import DocumentSource, add_documents_task
from cm3leon_jax.data.sources.caption_groups import grouped
from cm3leon_jax.data.sources.example_index import ExampleIndex, StoredExample
from cm3leon_jax.data.sources.examples import ImageReference
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.row_index import RowIndex
from cm3leon_jax.data.sources.structure_maps import structure_map
from cm3leon_jax.data.sources.tables import TableImages
from cm3leon_jax.data.sources.unchanged import MissingImage, UnreadableFile, read_unchanged
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.images import UnreadableImage, decode_image, num_pages, page_of
from cm3leon_jax.threads import NUM_THREADS, mapped_ahead

# Two files of an image are compared at this size.
_COMPARED = 64

# The images of parquet files that were read already, and why those that are missing are.
_Read = dict[ImageReference, bytes | UnreadableFile]
# An example with what was read of it, or why there is none.
_Item = tuple[StoredExample, _Read] | SkippedExample
# What an example has read of files of several pages.
_Files = dict[ImageReference, bytes]


class ExampleSource(DocumentSource):
    """Examples of a folder as downloaded, as a data source.

    One whose images cannot be read is skipped, not an error; an interleaved document goes on without those.
    """

    def __init__(self, index: ExampleIndex | RowIndex) -> None:
        super().__init__({split: len(found) for split, found in index.splits.items()})
        self._index = index
        # What the reader asks of any source (data/sources/reading.py).
        self.skipped, self.where, self.min_images = index.skipped, index.where, index.min_images
        self.provenance, self.changed_since = index.provenance, index.changed_since
        self.is_sampled = index.is_sampled

    def documents(self, split: str, start: int, stop: int) -> Iterator[Document | SkippedExample]:
        # Rows, and images of parquet files, are read in order, all else in threads.
        opened = mapped_ahead(self._open, self._with_cells(split, start, stop), 2 * NUM_THREADS)
        found = (document for _, document in opened)
        return grouped(found, functools.partial(self.where, split), start) if self.is_sampled else found

    def _with_cells(self, split: str, start: int, stop: int) -> Iterator[tuple[int, _Item]]:
        tables = TableImages(self._index.folder)
        for index, example in enumerate(self._index.between(split, start, stop), start):
            if isinstance(example, SkippedExample):
                yield index, example
                continue
            read: _Read = {}
            for image in sorted({image for image in example.images if image.column}):
                try:
                    read[image] = tables.image(image.file, image.column, image.row, image.number)
                except UnreadableFile as error:
                    read[image] = error
            yield index, (example, read)

    def _open(self, item: _Item) -> Document | SkippedExample:
        """An example with its images, or why there is none."""
        if isinstance(item, SkippedExample):
            return item
        example, read = item
        segments, omitted = list[TextSegment | ImageSegment](), list(example.omitted)
        files: _Files = {}
        try:
            for first, second in example.equal:
                if not _same_image(self._image(first, read, files), self._image(second, read, files)):
                    return SkippedExample("turn that does not begin with the image of the turn before")
            for each in example.segments:
                try:
                    segments.append(
                        TextSegment(each) if isinstance(each, str) else ImageSegment(self._image(each, read, files))
                    )
                except (MissingImage, UnreadableImage) as error:
                    if self.min_images is None:
                        raise
                    omitted.append(_reason(error))
        except (UnreadableFile, UnreadableImage) as error:
            return SkippedExample(_reason(error))
        return Document(tuple(segments), example.template, self.min_images, tuple(omitted))

    def _image(self, image: ImageReference, read: _Read, files: _Files) -> bytes:
        if image.num_pages:
            return page_of(self._pages(image, files), image.page)
        found = read[image] if image.column else self._file(image)
        if isinstance(found, UnreadableFile):
            raise found
        return structure_map(found, image.structure, image.options) if image.structure else found

    def _pages(self, image: ImageReference, files: _Files) -> bytes:
        """The file of an image and others, read once for an example."""
        key = image._replace(page=0)
        if key not in files:
            found = self._file(image)
            if num_pages(found) != image.num_pages:
                raise UnreadableFile("pages and images of unequal number")
            files[key] = found
        return files[key]

    def _file(self, image: ImageReference) -> bytes:
        size, time = self._index.file_status(image.file)
        stop = image.start + image.size if image.size else None
        return read_unchanged(self._index.folder / image.file, size, time, image.start, stop)


def _reason(error: UnreadableFile | UnreadableImage) -> str:
    return f"unreadable image: {error}" if isinstance(error, UnreadableImage) else str(error)


def _same_image(first: bytes, second: bytes) -> bool:
    """Whether two files hold the same image; an encoder may have run again without loss."""
    return first == second or bool((decode_image(first, _COMPARED, 3) == decode_image(second, _COMPARED, 3)).all())


def add_example_task(name: str, index: ExampleIndex | RowIndex) -> seqio.Task:
    """Registers a task of the examples under a new name."""
    return add_documents_task(name, ExampleSource(index))
