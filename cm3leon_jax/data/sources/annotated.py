"""The base of readers of files as downloaded: instructions and captioned images in JSON, tables and tars."""

from __future__ import annotations

import abc
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from cm3leon_jax.data.curation.curator import Curator
from cm3leon_jax.data.sources.downloaded import DownloadedSource
from cm3leon_jax.data.sources.example_index import ExampleFinder, ExampleIndex, index_parts, status_of
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference, UnwantedRow
from cm3leon_jax.data.sources.json_lines import parsed
from cm3leon_jax.data.sources.kept_index import FoundExamples, KeptIndex
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.skipped import Skipped, printable
from cm3leon_jax.data.sources.splits import split_in
from cm3leon_jax.distributed import has_joined
from cm3leon_jax.errors import UserError

_SHARD = re.compile(r"-\d+-of-\d+$")

# A row with where it is, for reports, and the split that its file's name says.
Row = tuple[str, str | None, Any]


class AnnotatedSource(DownloadedSource):
    """Files whose examples are found before they are read; each kind is a subclass."""

    @functools.cached_property
    def _root(self) -> str:
        return str(self.folder)

    @abc.abstractmethod
    def examples(self) -> Iterable[Example | SkippedExample]:
        """All examples in an order that is always the same, and what is skipped."""

    def read_index(self) -> ExampleIndex:
        finder = ExampleFinder(self.folder, self.what, self.corpus, self.curator)
        return index_parts(self.folder, self.what, self._parts(finder), self.skipped, self.corpus)

    def _parts(self, finder: ExampleFinder) -> Iterable[FoundExamples]:
        """The examples, in one or several parts."""
        return [finder.part(self.examples(), self.skipped)]

    @property
    def curator(self) -> Curator:
        """Says which rows are wanted."""
        return Curator(self.corpus.curation)

    def files(self, *suffixes: str, depth: int = 2) -> list[str]:
        """The names of the files with these suffixes, of a pattern or in the folder and those below down to a depth."""
        if self.pattern:
            return [name for name in self.pattern_files() if _suffix(name) in suffixes]
        if self.path.is_file():
            return [self.path.name] if _suffix(self.path.name) in suffixes else []
        found = [file for level in range(depth) for file in self.path.glob("*/" * level + "*") if file.is_file()]
        names = [file.relative_to(self.path).as_posix() for file in found if _suffix(file.name) in suffixes]
        return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))

    def read_json(self, name: str) -> Any:
        """The content of a JSON file."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{printable(str(self.folder / name))} is no JSON that can be read ({error})") from None

    def read_json_lines(self, name: str) -> Iterator[Row]:
        """The lines of a file of JSON lines, with the split that its name says; None for one that is no JSON."""
        try:
            with (self.folder / name).open(encoding="utf-8-sig", errors="surrogateescape") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield f"{name}:{number}", split_in(name), parsed(line)
        except OSError as error:
            raise UserError(f"{printable(str(self.folder / name))} cannot be read ({error.strerror})") from None

    def each(
        self, rows: Iterable[Row], make: Callable[..., Iterable[Example | SkippedExample]]
    ) -> Iterator[Example | SkippedExample]:
        """The examples that `make(where, split, row)` makes of rows; those that are no such row are skipped."""
        for where, split, row in rows:
            try:
                yield from make(where, split, row)
            except BadRow as error:
                yield SkippedExample(str(error), where, not isinstance(error, UnwantedRow))

    def image(self, name: str, *folders: str) -> ImageReference:
        """An image in the first of these folders that has a file of the name; in the first if none has."""
        found = (f"{folder}/{name}" if folder else name for folder in folders)
        names = list(dict.fromkeys(found)) or [name]
        return ImageReference(next((each for each in names if self._is_file(each)), names[0]))

    def beside(self, file: str, name: str) -> ImageReference:
        """An image that a file names from its own folder on, or from the source's, or in full."""
        if name.startswith("/"):
            return ImageReference(name)
        folders = file.rpartition("/")[0], ""
        found = [self.image(spelled, *folders) for spelled in dict.fromkeys((name, name.replace("\\", "/")))]
        return next((image for image in found if self._is_file(image.file)), found[0])

    def _is_file(self, name: str) -> bool:
        try:
            return os.path.isfile(f"{self._root}/{name}")  # noqa: PTH113 - many names, which are not paths yet
        except (OSError, ValueError):
            return False


class FileByFileSource(AnnotatedSource):
    """Files whose examples are found file by file, and kept beside the corpus where their images are in them."""

    @abc.abstractmethod
    def example_files(self) -> list[str]:
        """The files in the order in which they are read, by their names from the folder on.

        Raises:
          UserError: if there are none.
        """

    @abc.abstractmethod
    def examples_of(self, file: str, skipped: Skipped) -> Iterable[Example | SkippedExample]:
        """The examples of a file in an order that is always the same; `skipped` gets what is not an example at all."""

    def examples(self) -> Iterator[Example | SkippedExample]:
        for file in self.example_files():
            yield from self.examples_of(file, self.skipped)

    def _parts(self, finder: ExampleFinder) -> Iterator[FoundExamples]:
        files, kept = self.example_files(), KeptIndex(self.corpus.path, self._how())

        def part(file: str) -> FoundExamples:
            skipped = Skipped()
            return kept.part(
                file, status_of(self.folder / file), lambda: finder.part(self.examples_of(file, skipped), skipped)
            )

        if has_joined() and kept.is_kept:
            # Each process begins elsewhere, so that they find the files together.
            first = len(files) * jax.process_index() // jax.process_count()
            for file in [*files[first:], *files[:first]]:
                if not kept.has(file, status := status_of(self.folder / file)):
                    for _ in part(file).examples:
                        pass
                    if not kept.has(file, status):
                        break
        for file in files:
            yield part(file)

    def _how(self) -> str:
        """All that the examples of a file follow from besides it."""
        rows, folder = dataclasses.asdict(self.corpus.rows), self.corpus.folder
        annotations = dataclasses.asdict(self.corpus.annotations)
        return json.dumps([self.kind, rows, folder.caption_line, annotations, self.curator.description()])


def _suffix(name: str) -> str:
    """The suffix of a file, without the number of a shard after it: that of a.tfrecord-00000-of-00010 is .tfrecord."""
    return _SHARD.sub("", Path(name).suffix)
