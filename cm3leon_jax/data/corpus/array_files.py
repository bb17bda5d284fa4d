"""Arrays on disk that are not read where they are damaged: CRC-32 checksums, of whole files and of documents.

zlib's CRC-32 runs at some gigabytes a second. It finds every flipped bit and every damage of up to 32 bits in a row,
and all but one in four billion of any other.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write
from cm3leon_jax.records import Checksum, Name, read_record, write_record
from cm3leon_jax.storage.mirror import fetch_arrays

_BLOCK = 1 << 22


class ArrayFiles(TypedDict):
    """The record of some files that were written together: the checksum of each by its name."""

    files: dict[Name, Checksum]


def file_checksum(file: Path) -> int:
    """CRC-32 of a whole file."""
    found = 0
    fetch_arrays([file])
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found


def check_file(file: Path, checksum: int, fix: str) -> None:
    """Refuses a file that is missing, or is not what it was when its checksum was taken."""
    try:
        found = file_checksum(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): {fix}") from None
    if found != checksum:
        raise UserError(f"{file} is damaged: its bytes are not those that were written; {fix}")


def open_array(file: Path, checksum: int, fix: str) -> np.ndarray:
    """Memory-maps a NumPy file, after it was checked."""
    check_file(file, checksum, fix)
    try:
        return np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is damaged ({error}): {fix}") from None


def save_array(file: Path, array: np.ndarray) -> int:
    """Writes a NumPy file, whole or not at all, and returns its checksum."""
    with atomic_write(file) as temporary:
        with temporary.open("wb") as opened:
            np.save(opened, array)
        return file_checksum(temporary)


def save_arrays(record: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes files next to a record, by their names, then the record that says they are complete."""
    write_files_record(record, {name: save_array(record.with_name(name), array) for name, array in arrays.items()})


def write_files_record(record: Path, checksums: Mapping[str, int]) -> None:
    """Says that files are complete, and what they are."""
    write_record(record, {"files": dict(checksums)})


def read_files_record(record: Path, fix: str) -> dict[str, int]:
    """The checksum of each file that a record tells of."""
    return read_record(record, "the record of some arrays", ArrayFiles, fix, sealed=True)["files"]


def open_arrays(record: Path, names: Sequence[str], fix: str) -> list[np.ndarray]:
    """Memory-maps files that a record tells of, after each was checked."""
    checksums = read_files_record(record, fix)
    if missing := [name for name in names if name not in checksums]:
        raise UserError(f"{record} does not tell of {', '.join(missing)}: {fix}")
    return [open_array(record.with_name(name), checksums[name], fix) for name in names]
