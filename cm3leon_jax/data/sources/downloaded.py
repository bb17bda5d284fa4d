"""The base of sources that are a folder as its publisher hands it out."""

from __future__ import annotations

import abc
import functools
import re
from pathlib import Path
from typing import ClassVar

from cm3leon_jax.data.sources.example_index import ExampleIndex
from cm3leon_jax.data.sources.patterns import is_pattern, matching_files, pattern_folder
from cm3leon_jax.data.sources.registry import NamedSource
from cm3leon_jax.data.sources.row_index import RowIndex
from cm3leon_jax.data.sources.skipped import Skipped, printable
from cm3leon_jax.errors import UserError
from cm3leon_jax.paths import copied, local


class DownloadedSource(NamedSource):
    """`KIND:PATH` as `config.corpus.mixture`: a folder as downloaded, or some of its files.

    PATH may be a file, or a pattern such as `DIR/{00000..00041}.tar` or `DIR/train-*.parquet`.
    """

    # What is read, for messages.
    form: ClassVar[str]

    @property
    def task_name(self) -> str:
        """Named after the folder alone, not the way to it; of a pattern, also after that."""
        last = f" {self.pattern.removesuffix(Path(self.pattern).suffix)}" if self.pattern else ""
        name = self.path.resolve().stem + last.replace(str(self.path), "")
        return f"{self.kind}_" + re.sub(r"\W+", "_", name).strip("_")

    @functools.cached_property
    def path(self) -> Path:
        """The folder or file, or the folder that all files of a pattern are in."""
        path = pattern_folder(self.pattern) if self.pattern else Path(self._local)
        return copied(str(path), "config.corpus.mixture")

    @functools.cached_property
    def _local(self) -> str:
        return local(self.location, "config.corpus.mixture")

    @functools.cached_property
    def pattern(self) -> str:
        """Where the location names several files (patterns.py), else an empty text."""
        return self._local if is_pattern(self._local) else ""

    def pattern_files(self) -> list[str]:
        """The names of the files of the pattern, from the folder on; those that are not there are noted."""
        folder = self.path
        matching, absent = matching_files(self.pattern)
        for name in absent:
            self.skipped.add("file that is not there", name, is_document=False)
        return [name.removeprefix(f"{folder}/") for name in matching]

    @property
    def folder(self) -> Path:
        """What the names of files start from."""
        return self.path if self.path.is_dir() else self.path.parent

    @functools.cached_property
    def index(self) -> ExampleIndex | RowIndex:
        """Its examples, found once."""
        if not self.path.exists():
            raise UserError(f"{self.what}: nothing is at that path; give that of {self.form}")
        return self.read_index()

    @abc.abstractmethod
    def read_index(self) -> ExampleIndex | RowIndex:
        """Finds its examples."""

    def add_task(self) -> None:
        from cm3leon_jax.data.sources.example_task import add_example_task

        add_example_task(self.task_name, self.index)

    def provenance(self) -> dict[str, str]:
        return self.index.provenance()

    @functools.cached_property
    def skipped(self) -> Skipped:
        """What was passed over; a reader may add what is no fault of the data."""
        return Skipped()

    @property
    def what(self) -> str:
        """What the user wrote, for messages."""
        return printable(f"{self.kind}:{self.location}")

    def other_form(self, why: str = "") -> UserError:
        """The error where the folder holds nothing of this form."""
        return UserError(f"{self.what} holds no {self.form}{f': {why}' if why else ''}")
