"""The base of readers of interleaved documents: texts and images in turn, whose images may be missing."""

from __future__ import annotations

import abc
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cm3leon_jax.data.sources.captions import BadCaption, cleaned
from cm3leon_jax.data.sources.downloaded import DownloadedSource
from cm3leon_jax.data.sources.example_index import StoredExample, status_of
from cm3leon_jax.data.sources.examples import BadRow, ImageReference, NamedImage, UnwantedRow
from cm3leon_jax.data.sources.image_store import ImageStore
from cm3leon_jax.data.sources.listing import entries_below
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.row_index import RowIndex, index_rows
from cm3leon_jax.data.sources.unchanged import UnreadableFile
from cm3leon_jax.documents import TOO_FEW_IMAGES
from cm3leon_jax.errors import UserError
from cm3leon_jax.paths import copied

# A text, an image in a file that is known, one that has to be found, or why there is none, for a report.
Segment = str | ImageReference | NamedImage | BadRow


# What comes after the last row of a file; a row may be None.
_END = object()


class InterleavedSource(DownloadedSource):
    """A folder of files whose rows are documents, or one such file; each kind is a subclass."""

    # The ends of the names of its files.
    suffixes: ClassVar[tuple[str, ...]]
    # What is between texts that no image is between.
    joint: ClassVar[str] = "\n"

    @abc.abstractmethod
    def num_rows(self, file: str) -> int | None:
        """How many rows a file has; None if it is none of documents; an `UnreadableFile` if it cannot be read."""

    @abc.abstractmethod
    def rows(self, file: str, start: int) -> Iterator[Any]:
        """The rows of a file from one on."""

    @abc.abstractmethod
    def segments(self, file: str, number: int, row: Any) -> Sequence[Segment]:
        """The texts and images of a row in reading order; a `BadRow` if it has not the published form."""

    def read_index(self) -> RowIndex:
        if not sum(self._num_rows.values()):
            raise self.other_form(self.skipped.in_one_line(800))
        config = self.corpus
        return index_rows(
            self.folder, self._num_rows, self.read, self._images, self.skipped, config.folder, config.interleaved
        )

    @functools.cached_property
    def _num_rows(self) -> dict[str, int]:
        """How many rows each file of documents has."""
        found: dict[str, int] = {}
        for file in self.files:
            try:
                if (count := self.num_rows(file)) is not None:
                    found[file] = count
            except UnreadableFile as error:
                self.skipped.add(str(error), file, is_document=False)
                found[file] = 0
        return found

    @functools.cached_property
    def files(self) -> Sequence[str]:
        """The names of the files that have documents, or may have."""
        if self.pattern:
            return [name for name in self.pattern_files() if name.endswith(self.suffixes)]
        if self.path.is_file():
            return [self.path.name]
        found = (name for name, _ in entries_below(self.folder, self.skipped) if name.endswith(self.suffixes))
        folder, images = self.folder.resolve(), self._image_folder.resolve()
        apart = (f"{images}/",) if images != folder else ()
        return sorted(name for name in found if not f"{folder}/{name}".startswith(apart))

    @functools.cached_property
    def _image_folder(self) -> Path:
        given = self.corpus.interleaved.images
        if not given:
            return beside if (beside := self.folder / "images").is_dir() else self.folder
        if not (found := copied(given, "config.corpus.interleaved.images")).is_dir():
            raise UserError(f"config.corpus.interleaved.images={given}: no folder is there; give that of the images")
        return found

    @functools.cached_property
    def _images(self) -> ImageStore:
        is_apart = self._image_folder.resolve() != self.folder.resolve()
        return ImageStore(self._image_folder, self.skipped, without=() if is_apart else self._num_rows)

    def read(self, file: str, numbers: Sequence[int]) -> Iterator[StoredExample | SkippedExample]:
        """The documents of some rows of a file, given in their order, or why one is none."""
        num_read = 0
        try:
            if status_of(self.folder / file) != self.index.files[file]:
                raise UnreadableFile("file that was edited meanwhile")
            rows = enumerate(self.rows(file, numbers[0]), numbers[0])
            for number in numbers:
                row = next((row for at, row in rows if at == number), _END)
                if row is _END:
                    raise UnreadableFile("row that cannot be read")
                try:
                    segments = self.segments(file, number, row)
                    found: StoredExample | SkippedExample = self._document(f"{file}:{number}", segments)
                except BadRow as error:
                    found = SkippedExample(str(error), is_fault=not isinstance(error, UnwantedRow))
                num_read += 1
                yield found
        except (UnreadableFile, UserError) as error:
            reason = str(error) if isinstance(error, UnreadableFile) else "row that cannot be read"
            yield from itertools.repeat(SkippedExample(reason), len(numbers) - num_read)

    def _document(self, where: str, segments: Sequence[Segment]) -> StoredExample:
        config = self.corpus.interleaved
        kept, omitted = list[str | ImageReference](), list[str]()
        seen, last_text = set[NamedImage](), ""
        for segment in segments:
            if isinstance(segment, BadRow):
                omitted.append(str(segment))
            elif isinstance(segment, str):
                if (text := _text(segment)) is None:
                    continue
                if not kept or not isinstance(kept[-1], str):
                    kept.append(text)
                elif config.drop_repeated and text == last_text:
                    omitted.append("repeated text")
                else:
                    kept[-1] += self.joint + text
                last_text = text
            elif isinstance(segment, ImageReference):
                kept.append(segment)
            elif config.drop_repeated and segment in seen:
                omitted.append("repeated image")
            elif (found := self._images.find(segment)) is None:
                omitted.append("missing image")
            else:
                seen.add(segment)
                kept.append(found)
        num_images = sum(isinstance(segment, ImageReference) for segment in kept)
        if num_images < config.min_images:
            raise UnwantedRow(TOO_FEW_IMAGES)
        if config.max_images is not None and num_images > config.max_images:
            raise UnwantedRow("too many images")
        if sum(len(segment) for segment in kept if isinstance(segment, str)) < config.min_characters:
            raise UnwantedRow("too little text")
        return StoredExample(where, "", tuple(kept), omitted=tuple(omitted))


def _text(segment: str) -> str | None:
    """A text as it is kept; None if nothing is left of it."""
    try:
        return cleaned(segment) if segment.strip() else None
    except BadCaption as error:
        if "empty" in str(error):
            return None
        raise BadRow("text with half a character") from None
