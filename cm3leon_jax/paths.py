"""Checks the paths that a user gives before anything is written, and explains what the system says against one.

A path may be local, or an address such as gs://bucket/run or s3://bucket/run. Of an address, the rest of the package
only sees the local copy (storage/address.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cm3leon_jax.errors import UserError
from cm3leon_jax.storage import mirror, objects
from cm3leon_jax.storage.address import SCHEMES, address_of, local_path, scheme_of, shown

# The errors of operations on a path that the user can fix, and how.
_REMEDIES = {
    errno.ENOENT: "give a path that is there, on a file system that takes new files",
    errno.EACCES: "give yourself the right to it, or another path",
    errno.EPERM: "give yourself the right to it, or another path",
    errno.EROFS: "give a path on a file system that can be written",
    errno.ENOTDIR: "a file is where a folder has to be; move it, or give another path",
    errno.EISDIR: "a folder is where a file has to be; move it, or give another path",
    errno.EEXIST: "something else is there; move it, or give another path",
    errno.ENOTEMPTY: "something else is there; move it, or give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "its symbolic links lead in a circle; give another path",
    errno.EXDEV: "the two lie on different file systems; give paths on one",
    errno.ETXTBSY: "a program that runs; give another path",
    errno.ENODEV: "its device is gone; mount it again, or give another path",
    errno.ENXIO: "its device is gone; mount it again, or give another path",
    errno.ENOTCONN: "its file system is gone; mount it again, or give another path",
    errno.ESTALE: "its file system was changed by another host; mount it again",
    errno.EIO: "the device fails; copy what can still be read to another",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "raise the system's limit of open files",
}


@dataclass(frozen=True)
class IsPath:
    """Marks a config field that holds a path, possibly after a prefix such as "folder:"."""

    may_be_empty: bool = False
    prefix: str = ""


# Files and folders in buckets that this process has copied.
_copied: set[Path] = set()

LocalPath = Annotated[str, IsPath()]
OptionalPath = Annotated[str, IsPath(may_be_empty=True)]


def local(text: str, name: str) -> str:
    """Expands the `~` of a local path, and gives the local copy of an address in a bucket, which may not be made yet.

    `name` is what the user gave it as, such as "--output".
    """
    if not text.strip():
        raise UserError(f"{name} is empty: give a path")
    if "\0" in text:
        raise UserError(f"{name}={text}: no path has a NUL character in it; give another")
    try:
        text.encode("utf-8")
        if scheme := scheme_of(text):
            return str(_copy_of(text, scheme, name))
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except UnicodeEncodeError:
        raise UserError(f"{name}={text}: the path is not UTF-8; rename it, or make a symbolic link to it") from None
    except RuntimeError:
        raise UserError(f"{name}={text}: there is no such home folder; write the path in full") from None


def local_in_field(text: str, kind: IsPath, name: str) -> str:
    """Does the same for the value of a config field of this kind."""
    if not text.startswith(kind.prefix) or (kind.may_be_empty and not text):
        return text
    path = local(text.removeprefix(kind.prefix), name)
    # A text that is more than a path is kept, as it is stored; who opens it looks for the copy.
    return text if kind.prefix and address_of(path) else kind.prefix + path


def input_path(name: str) -> Callable[[str], Path]:
    """The `type` of the command-line argument `name`, a path to read."""
    return lambda text: copied(text, name)


def run_folder(name: str) -> Callable[[str], Path]:
    """The `type` of the command-line argument `name`, the folder of a run, of which nothing is copied yet."""
    return lambda text: Path(local(text, name))


def copied(text: str, name: str) -> Path:
    """The path to read a file or folder by; of one in a bucket, a copy is made when a process first asks for it."""
    path = Path(local(text, name))
    if address_of(path) and path not in _copied:
        mirror.refresh(path)
        _copied.add(path)
    return path


def _copy_of(text: str, scheme: str, name: str) -> Path:
    if scheme not in SCHEMES:
        known = " and ".join(f"{known}://" for known in SCHEMES)
        raise UserError(f"{name}={text}: {scheme}:// is not supported, {known} are: mount it and give its local path")
    objects.check_library(scheme, f"{name}={text}")
    try:
        return local_path(text)
    except ValueError as error:
        raise UserError(f"{name}={text}: {error}; write {scheme}://BUCKET/NAME") from None


def output_folder(name: str) -> Callable[[str], Path]:
    """The `type` of the command-line argument `name`, a folder to write into or create."""
    return lambda text: writable_folder(Path(local(text, name)), name)


def output_file(name: str) -> Callable[[str], Path]:
    """The `type` of the command-line argument `name`, a file to write."""

    def checked(text: str) -> Path:
        path = Path(local(text, name))
        writable_folder(path.parent, name)
        with _one_line(f"{name}={_shown(path)} cannot be written"):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return path

    return checked


def writable_folder(folder: Path, name: str) -> Path:
    """Returns `folder` if files can be written there, or it can be created, and leaves no trace.

    It tries: permissions do not show what a file system allows, least of all to root.
    """
    if address := address_of(folder):
        trial = f"{address}/.{uuid.uuid4().hex}.partial"
        objects.write_object_bytes(trial, b"")
        objects.delete_object(trial)
    with _one_line(f"{name}={_shown(folder)} cannot be written"):
        nearest = folder
        while not (nearest.exists() or nearest.is_symlink()) and nearest != nearest.parent:
            nearest = nearest.parent
        Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=nearest)).rmdir()
        # The full name may be too long although each part of it is not.
        folder.exists()
    return folder


@contextlib.contextmanager
def _one_line(start: str) -> Iterator[None]:
    """Turns what the system says against a path into a `UserError`."""
    try:
        yield
    except OSError as error:
        reason = refusal(error)
        if reason is None:
            raise
        raise UserError(f"{start}: {reason}") from None


def refusal(error: BaseException | None) -> str | None:
    """What the system says against a path, and the remedy; None if neither an error nor its cause is about a path."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REMEDIES and error.filename is not None:
            return f"{_shown(error.filename)}: {os.strerror(error.errno)}; {_REMEDIES[error.errno]}"
        error = error.__cause__
    return None


def _shown(path: object) -> str:
    """A path for a message: not that of the temporary file, and at most 300 characters."""
    text = shown(os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path))
    text = re.sub(r"/\.([^/]*?)(\.\d+)?\.partial(?=/|$)", lambda found: f"/{found[1]}" if found[2] else "", text)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-100:]}"
