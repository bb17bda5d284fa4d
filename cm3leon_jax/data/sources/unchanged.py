"""Files that are read later than they were listed."""

from __future__ import annotations

import os
from pathlib import Path


class UnreadableFile(Exception):
    """A file that is not, or no longer, what was listed; the text says why."""


class MissingImage(UnreadableFile):
    """An image that was never there."""

    def __init__(self) -> None:
        super().__init__("missing image")


def read_unchanged(file: Path, size: int, time: int, start: int = 0, stop: int | None = None) -> bytes:
    """Reads a file of so many bytes that was changed last at this time, in nanoseconds since 1970, or a part of it.

    Raises:
      UnreadableFile: if it is not the file that was listed, or cannot be read.
    """
    try:
        # Should there be a pipe now, this does not wait for its other end.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (size, time):
                raise UnreadableFile("image that was edited meanwhile")
            opened.seek(start)
            return opened.read() if stop is None else opened.read(stop - start)
    except FileNotFoundError:
        raise UnreadableFile("image that was removed meanwhile") from None
    except OSError as error:
        raise UnreadableFile(f"file that cannot be read: {error.strerror}") from None
