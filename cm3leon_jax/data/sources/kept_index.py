"""What was found in each file of a source, kept beside the corpus: who reads the source again need not search the file.

    CORPUS/index/examples-KEY.jsonl.gz   first what was skipped, then the examples of one file, each with a hash of its
                                         group and its own split

KEY says which file it was, with its size and time of change, and how it was read. Only files that hold their images
themselves are kept so: whether other files are there has to be looked up each time.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from cm3leon_jax.data.sources.skipped import Skipped
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write
from cm3leon_jax.storage.mirror import fetch

# What is stored is of this form.
_VERSION = 1
_AT_ONCE = 1 << 20


class FoundExample(NamedTuple):
    """An example as an index holds it: its text, a hash of its group, and the split that its publisher says."""

    text: str
    group: int
    split: str | None


@dataclass
class FoundExamples:
    """The examples of some files; all else is known when they were iterated over."""

    examples: Iterator[FoundExample] = field(default_factory=lambda: iter(()))
    skipped: Skipped = field(default_factory=Skipped)
    # The files with their images, with sizes and times of change.
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    # Whether images are parts of files, which are read from their start to their end.
    in_file_order: bool = False


class KeptIndex:
    """The parts of a source that are kept."""

    def __init__(self, corpus: str, how: str) -> None:
        """
        Args:
          corpus: the folder of the corpus; nothing is kept where that is none yet, as in a config without a workdir.
          how: all that the examples follow from besides their file.
        """
        self._folder = Path(corpus, "index") if corpus and "{" not in corpus else None
        self._how = how

    def part(self, name: str, status: tuple[int, int] | None, find: Callable[[], FoundExamples]) -> FoundExamples:
        """The part of a file: as it is kept, else as `find` finds it, which is kept then.

        Args:
          name: the file's, from the source's folder on.
          status: its size and time of change.
        """
        if self._folder is None or status is None:
            return find()
        file = self._file(name, status)
        return _loaded(file, name, status) if self._has(file) else _keeping(find(), file, name)

    def has(self, name: str, status: tuple[int, int] | None) -> bool:
        """Whether the part of a file is kept."""
        return self._folder is not None and status is not None and self._has(self._file(name, status))

    @property
    def is_kept(self) -> bool:
        """Whether anything is."""
        return self._folder is not None

    def _file(self, name: str, status: tuple[int, int]) -> Path:
        assert self._folder is not None
        key = json.dumps([_VERSION, self._how, name, *status]).encode()
        return self._folder / f"examples-{hashlib.sha256(key).hexdigest()[:32]}.jsonl.gz"

    def _has(self, file: Path) -> bool:
        with contextlib.suppress(OSError):
            return (file.is_file() or fetch(file)) and _is_whole(file)
        return False


def _is_whole(file: Path) -> bool:
    """Whether a file can be read to its end, where its checksum is."""
    has_header = False
    try:
        with gzip.open(file) as opened:
            while opened.read(_AT_ONCE):
                has_header = True
    except (OSError, EOFError, zlib.error):
        return False
    return has_header


def _loaded(file: Path, name: str, status: tuple[int, int]) -> FoundExamples:
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        header = json.loads(opened.readline())
    files = {name: status} if header["has_images"] else {}
    return FoundExamples(_examples_in(file), Skipped.from_json(header["skipped"]), files, header["has_images"])


def _examples_in(file: Path) -> Iterator[FoundExample]:
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        opened.readline()
        for line in opened:
            yield FoundExample(*json.loads(line))


def _keeping(part: FoundExamples, file: Path, name: str) -> FoundExamples:
    """The same part, which is written when it has been iterated over."""
    found = part.examples

    def examples() -> Iterator[FoundExample]:
        with tempfile.TemporaryFile() as temporary:
            with gzip.GzipFile(fileobj=temporary, mode="wb", compresslevel=1, mtime=0) as lines:
                for example in found:
                    lines.write(json.dumps(example).encode() + b"\n")
                    yield example
            if part.files.keys() <= {name}:
                temporary.seek(0)
                _write(file, part, temporary)

    part.examples = examples()
    return part


def _write(file: Path, part: FoundExamples, examples: IO[bytes]) -> None:
    header = {"skipped": part.skipped.to_json(), "has_images": bool(part.files)}
    # Where it cannot be written, as in another user's corpus, the source is searched each time.
    with contextlib.suppress(OSError, UserError), atomic_write(file) as temporary, temporary.open("wb") as opened:
        # A file of gzip may be several, one after the other.
        opened.write(gzip.compress(json.dumps(header).encode() + b"\n", 1, mtime=0))
        shutil.copyfileobj(examples, opened)
