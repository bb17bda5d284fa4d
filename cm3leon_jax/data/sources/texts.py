"""Texts kept on disk."""

from __future__ import annotations

import os
import tempfile
from array import array


class Texts:
    """Texts in a file of their own, so that memory does not grow with them."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        self._ends.append(self._ends[-1] + self._file.write(text.encode()))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index], self._ends[index + 1]
        self._file.flush()
        return os.pread(self._file.fileno(), end - start, start).decode()
