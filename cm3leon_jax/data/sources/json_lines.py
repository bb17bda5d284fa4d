"""Files of JSON lines, plain, gzipped or zipped."""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from cm3leon_jax.data.sources.unchanged import UnreadableFile

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zip")
# A line that is longer is none: what follows it is passed over without being kept.
_LONGEST = 1 << 26


def lines_of(file: Path) -> Iterator[bytes]:
    """The lines of a file that are not blank.

    Raises:
      UnreadableFile: where it cannot be read, or not beyond the lines that came.
    """
    num_lines = 0
    try:
        for opened in _opened(file):
            while line := opened.readline(_LONGEST):
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = opened.readline(_LONGEST)
                if line.strip():
                    num_lines += 1
                    yield line
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError):
        raise UnreadableFile("file that is cut off or damaged" if num_lines else "file that cannot be read") from None


def _opened(file: Path) -> Iterator[IO[bytes]]:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith((".jsonl", ".json")) and not name.startswith("__MACOSX/"):
                    with archive.open(name) as opened:
                        yield opened
        return
    with file.open("rb") as plain:
        yield cast(IO[bytes], gzip.GzipFile(fileobj=plain)) if file.suffix == ".gz" else plain


def parsed(line: bytes | str) -> Any:
    """The value of a line, or of another text; None if it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
