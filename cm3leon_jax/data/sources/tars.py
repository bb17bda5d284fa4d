"""Tar archives whose members are read where they are, by their offsets."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from cm3leon_jax.data.sources.skipped import printable
from cm3leon_jax.errors import UserError

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Bytes that are searched for what follows the end of an archive, at a time.
_AT_ONCE = 1 << 20

NO_TAR = "tar that cannot be read"
CUT = "tar that is cut off"
DAMAGED = "tar that is damaged"
NO_FILE = "link, device or sparse file in a tar"


class TarMember(NamedTuple):
    """A file in a tar: its name, where its bytes begin, and how many they are."""

    name: str
    start: int
    size: int


class TarFault(NamedTuple):
    """What is wrong with a tar, and at which byte."""

    kind: str
    start: int


def read_members(archive: Path) -> Iterator[TarMember | TarFault]:
    """The files in a tar, and in those that were appended to it; from a fault on, the rest of it is lost.

    Reads the headers alone. The member that a cut goes through is lost.

    Raises:
      UserError: if it is compressed, so that no member can be read by itself.
    """
    try:
        with archive.open("rb") as file:
            start = file.read(6)
            if found := next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), ""):
                raise UserError(
                    f"{printable(str(archive))} is compressed ({found}), so no member of it can be read by itself: "
                    "unpack it to a plain tar"
                )
            end = file.seek(0, 2)
            yield from _members(file, end)
    except OSError:
        yield TarFault(NO_TAR, 0)


def _members(file: IO[bytes], end: int) -> Iterator[TarMember | TarFault]:
    start: int | None = 0
    while start is not None:
        file.seek(start)
        reached = start
        try:
            with tarfile.TarFile(fileobj=file) as archive:
                while (member := archive.next()) is not None:
                    # It would keep all of them.
                    cast(Any, archive).members.clear()
                    if archive.offset <= reached or member.size < 0:
                        raise tarfile.ReadError("a member of negative size")
                    reached = archive.offset
                    if member.offset_data + member.size > end:
                        yield TarFault(CUT, member.offset)
                        return
                    if member.isfile() and not member.issparse():
                        yield TarMember(member.name.removeprefix("./"), member.offset_data, member.size)
                    elif not member.isdir():
                        yield TarFault(NO_FILE, member.offset)
                reached = archive.offset
        # On damaged headers it raises exceptions of any type.
        except Exception:
            yield TarFault(_kind(reached, end) if reached else NO_TAR, reached)
            return
        file.seek(reached)
        if any(block := file.read(tarfile.BLOCKSIZE)) or not block:
            yield TarFault(_kind(reached, end), reached)
            return
        start = _next_block(file)


def _kind(start: int, end: int) -> str:
    """Why there is no header and no end of the archive at `start`, in a file of `end` bytes."""
    return CUT if start + tarfile.BLOCKSIZE > end else DAMAGED


def _next_block(file: IO[bytes]) -> int | None:
    """Where the next block begins that is not all zeros; None if there is none."""
    while content := file.read(_AT_ONCE):
        if rest := len(content.lstrip(b"\0")):
            return (file.tell() - rest) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    return None
