"""The files of a folder and all folders below: images, caption files and metadata, each once, without opening them."""

from __future__ import annotations

import os
import stat
import unicodedata
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cm3leon_jax.data.sources.skipped import Skipped
from cm3leon_jax.images import IMAGE_SUFFIXES, UNSUPPORTED_IMAGE_SUFFIXES

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_SUFFIX = ".txt"

UNSUPPORTED = "image of a kind that is not read"


def same_name(name: str) -> str:
    """The one form of a name that systems compose in different ways (macOS takes accents apart)."""
    return unicodedata.normalize("NFC", name)


def stem_of(name: str) -> str:
    """A name without its suffix, in the form that is compared."""
    return same_name(os.path.splitext(name)[0])  # noqa: PTH122 - these are names, many, and not paths yet


@dataclass
class Listing:
    """The files of a folder, by their names from there; of the images also sizes in bytes and times of change."""

    images: list[str] = field(default_factory=list)
    sizes: array = field(default_factory=lambda: array("q"))
    times: array = field(default_factory=lambda: array("q"))
    captions: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    # Images that cannot be read, by stem: their captions are not without an image.
    lost_stems: set[str] = field(default_factory=set)
    lost_captions: set[str] = field(default_factory=set)
    # Images of formats that are not read.
    unsupported: list[str] = field(default_factory=list)


def list_files(folder: Path, skipped: Skipped) -> Listing:
    """Finds the files, each folder once however many links lead there; what is odd is counted in `skipped`."""
    found = Listing()
    for name, entry in entries_below(folder, skipped):
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
        is_metadata = entry.name.lower() in METADATA_FILES
        if suffix in UNSUPPORTED_IMAGE_SUFFIXES:
            found.unsupported.append(name)
        elif suffix in IMAGE_SUFFIXES or suffix == CAPTION_SUFFIX or is_metadata:
            status, fault = _status(entry)
            if status is None:
                skipped.add(fault, name)
                if not is_metadata:
                    (found.lost_captions if suffix == CAPTION_SUFFIX else found.lost_stems).add(stem_of(name))
            elif is_metadata:
                found.metadata.append(name)
            elif suffix == CAPTION_SUFFIX:
                found.captions.append(name)
            else:
                found.images.append(name)
                found.sizes.append(status.st_size)
                found.times.append(status.st_mtime_ns)
    return found


def entries_below(folder: Path, skipped: Skipped) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All that is no folder and not hidden, with its name from `folder` on; real folders come before links to them."""
    seen: set[object] = set()
    real, links = [""], list[str]()
    while real or links:
        below = real.pop() if real else links.pop()
        path = folder / below
        try:
            identity = _identity(path)
            if identity in seen:
                skipped.add("folder that a link leads to again", below, is_document=False)
                continue
            seen.add(identity)
            with os.scandir(path) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError:
            skipped.add("folder that cannot be opened", below or str(folder), is_document=False)
            continue
        folders, linked = list[str](), list[str]()
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (linked if entry.is_symlink() else folders).append(name)
            else:
                yield name, entry
        real.extend(reversed(folders))
        links[:0] = reversed(linked)


def _identity(path: Path) -> object:
    status = path.stat()
    # Some file systems number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _status(entry: os.DirEntry[str]) -> tuple[os.stat_result | None, str]:
    """A file's status, or why it is none that can be read."""
    try:
        status = entry.stat()
    except OSError:
        return None, "link that leads nowhere" if entry.is_symlink() else "file that cannot be read"
    if not stat.S_ISREG(status.st_mode):
        return None, "pipe, socket or device"
    if not os.access(entry.path, os.R_OK):
        return None, "file that cannot be read"
    return status, ""
