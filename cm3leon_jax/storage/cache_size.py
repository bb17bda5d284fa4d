"""Bounds the local copies of buckets: what was used longest ago makes room for what is needed now.

CM3LEON_CACHE_GB is the most that they may take, in units of 10^9 bytes; without it, they may fill the disk up to a
twentieth. What a running process uses stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cm3leon_jax.errors import UserError
from cm3leon_jax.storage.address import SCHEMES, address_of, cache_folder, shown

SIZE_VARIABLE = "CM3LEON_CACHE_GB"
_KEPT_FREE = 0.05

# Open for as long as this process runs, each with a shared lock.
_in_use: dict[Path, IO[str]] = {}
# Bytes of all copies, as far as this process knows.
_taken: float | None = None


def keep(folder: Path) -> None:
    """Keeps the copy of a folder for as long as this process runs."""
    if folder in _in_use:
        return
    file = _use_file(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    opened = file.open("a+")
    fcntl.flock(opened, fcntl.LOCK_SH)
    os.utime(file)
    _in_use[folder] = opened


def make_room(size: int) -> None:
    """Removes copies that no process uses, the longest unused first, until so many bytes fit; refuses what cannot."""
    missing = _missing(size)
    if missing <= 0:
        return
    uses = sorted((cache_folder() / ".in_use").glob("*"), key=lambda file: file.stat().st_mtime)
    with contextlib.ExitStack() as held:
        unused, used = [], list(_in_use)
        for file in uses:
            folder = _folder_of(file)
            opened = held.enter_context(file.open("a+"))
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unused.append(folder)
            except BlockingIOError:
                used.append(folder)
        for folder in unused:
            if missing > 0 and not any(other.is_relative_to(folder) or folder.is_relative_to(other) for other in used):
                shutil.rmtree(folder, ignore_errors=True)
                missing = _missing(size, rescan=True)
    if missing > 0:
        raise UserError(
            f"the copies of buckets in {cache_folder()} need {missing / 1e9:,.2f} GB more than they may take: raise "
            f"{SIZE_VARIABLE}, free some of the disk, or set CM3LEON_CACHE to a folder on a larger one"
        )


def _missing(size: int, rescan: bool = False) -> float:
    """By how many bytes the copies would be too large with so many more."""
    global _taken
    free = shutil.disk_usage(_existing(cache_folder()))
    missing = size - (free.free - _KEPT_FREE * free.total)
    if most := _most_bytes():
        if rescan or _taken is None or _taken + size > most:
            _taken = sum(path.stat().st_size for scheme in SCHEMES for path in _files(cache_folder() / scheme))
        missing = max(missing, _taken + size - most)
        _taken += size
    return missing


def _most_bytes() -> float:
    text = os.environ.get(SIZE_VARIABLE, "")
    return _parsed(text) if text else 0.0


@functools.cache
def _parsed(text: str) -> float:
    try:
        if (size := float(text) * 1e9) > 0:
            return size
    except ValueError:
        pass
    raise UserError(f"{SIZE_VARIABLE}={text}: a number of gigabytes above 0")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _use_file(folder: Path) -> Path:
    return cache_folder() / ".in_use" / urllib.parse.quote(address_of(folder) or shown(str(folder)), safe="")


def _folder_of(file: Path) -> Path:
    scheme, _, key = urllib.parse.unquote(file.name).partition("://")
    return cache_folder() / scheme / key
