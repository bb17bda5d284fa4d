"""Paths that a user gives: local ones, checked before anything is written, and what the system says against one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cm3leon_jax.errors import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

# What an operation on a path failed with, where that is the user's to mend, and how.
_REMEDIES = {
    errno.ENOENT: "give a path that is there, on a file system that takes new files",
    errno.EACCES: "give yourself the right to it, or another path",
    errno.EPERM: "give yourself the right to it, or another path",
    errno.EROFS: "give a path on a file system that can be written",
    errno.ENOTDIR: "a file lies where a folder has to be; move it, or give another path",
    errno.EISDIR: "a folder lies where a file has to be; move it, or give another path",
    errno.EEXIST: "something else lies there; move it, or give another path",
    errno.ENOTEMPTY: "something else lies there; move it, or give another path",
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
    """Says of a config field that it holds a path, or that a path stands in it behind a word."""

    may_be_empty: bool = False
    behind: str = ""


LocalPath = Annotated[str, IsPath()]
OptionalPath = Annotated[str, IsPath(may_be_empty=True)]


def local(text: str, name: str) -> str:
    """A path with its `~` expanded; `name` is what the user gave it as, such as "--output".

    Raises:
      UserError: if it is no path of this machine's file systems.
    """
    if not text.strip():
        raise UserError(f"{name} is empty: give a path")
    if scheme := _SCHEME.match(text):
        raise UserError(f"{name}={text}: {scheme[0]} is not supported yet: mount the bucket and give its local path")
    if "\0" in text:
        raise UserError(f"{name}={text}: no path has a NUL character in it; give another")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{name}={text}: the path is not UTF-8; rename it, or make a symbolic link to it") from None
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise UserError(f"{name}={text}: there is no such home folder; write the path in full") from None


def local_in_field(text: str, kind: IsPath, name: str) -> str:
    """The same for what a config field of this kind holds."""
    if not text.startswith(kind.behind) or (kind.may_be_empty and not text):
        return text
    return kind.behind + local(text.removeprefix(kind.behind), name)


def input_path(name: str) -> Callable[[str], Path]:
    """The `type` of an argument that names what is read."""
    return lambda text: Path(local(text, name))


def output_folder(name: str) -> Callable[[str], Path]:
    """The `type` of an argument that names a folder to be written, or made."""
    return lambda text: writable_folder(Path(local(text, name)), name)


def output_file(name: str) -> Callable[[str], Path]:
    """The `type` of an argument that names a file to be written."""

    def checked(text: str) -> Path:
        path = Path(local(text, name))
        writable_folder(path.parent, name)
        with one_line(f"{name}={_named(path)} cannot be written"):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return path

    return checked


def writable_folder(folder: Path, name: str) -> Path:
    """Returns `folder` if files can be written there, or it can be made; leaves nothing behind.

    Raises:
      UserError: if not. Only a try tells: what a file system allows is not in its permissions, least of all for root.
    """
    with one_line(f"{name}={_named(folder)} cannot be written"):
        nearest = folder
        while not (nearest.exists() or nearest.is_symlink()) and nearest != nearest.parent:
            nearest = nearest.parent
        Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=nearest)).rmdir()
        # On the way to a long name the short ones may all be right.
        folder.exists()
    return folder


@contextlib.contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turns what the system says against a path into a mistake; `name` begins the line."""
    try:
        yield
    except OSError as error:
        said = refusal(error)
        if said is None:
            raise
        raise UserError(f"{name}: {said}") from None


def refusal(error: BaseException | None) -> str | None:
    """What the system has against a path, and what helps; None if an error, or its cause, is nothing such."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REMEDIES and error.filename is not None:
            return f"{_named(error.filename)}: {os.strerror(error.errno)}; {_REMEDIES[error.errno]}"
        error = error.__cause__
    return None


def _named(path: object) -> str:
    """A path as it is shown: its own name, not the temporary one, and no thousands of characters."""
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    text = re.sub(r"/\.([^/]*?)(\.\d+)?\.partial(?=/|$)", lambda found: f"/{found[1]}" if found[2] else "", text)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-100:]}"
