"""The folder of a run's answers: one PNG per image, generations.jsonl, and failed.jsonl for records without an answer.

A run takes the place of the one before it in that folder, and of nothing else. What the one before it left is what its
own lists name; a folder that holds other things and no such list is refused, before anything is computed. New files are
made in a hidden folder inside and moved into place at the end, images first and lists last, so that a list names only
what is there. A run that was killed leaves its lists in that hidden folder: the next one clears up after it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write, is_full_disk
from cm3leon_jax.lock import lock

ANSWERS_FILE, FAILURES_FILE = "generations.jsonl", "failed.jsonl"
_LISTS = (ANSWERS_FILE, FAILURES_FILE)
_IMAGE = re.compile(r"(\d{5,})(_\d+)?\.png")
_STAGE = re.compile(r"\.generate\.\d+\.partial")
# The lists of the run before, while its place is taken.
_EARLIER = "earlier."
# What desktops put into every folder that they show.
_OF_DESKTOPS = ("thumbs.db", "desktop.ini")
# Far above any line that is written here.
_LONGEST_LINE = 1 << 26


@dataclass(frozen=True)
class OutputFolder:
    """A folder that one run alone fills."""

    path: Path
    # Device and inode of each file that the run before left there.
    earlier: frozenset[tuple[int, int]] = field(default=frozenset())

    def will_replace(self, path: Path) -> bool:
        """Whether a file is one of the run before, which this run removes."""
        try:
            found = path.stat()
        except (OSError, ValueError):
            return False
        return (found.st_dev, found.st_ino) in self.earlier

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """Yields a hidden folder for new images; what the body leaves there takes the place of the run before.

        Raises:
          UserError: if a file that no run wrote is in the way by now.
        """
        stage = self.path / f".generate.{os.getpid()}.partial"
        stage.mkdir()
        try:
            yield stage
            # Again: a person may have put something there while the answers were made.
            _replace(self.path, stage, _earlier(self.path, besides=stage.name))
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[OutputFolder]:
    """Makes sure that answers can be put into a folder, and holds it against other runs while the body works.

    Raises:
      UserError: if it cannot be a folder, another run writes there, or it holds what is not a run's.
    """
    with contextlib.ExitStack() as held:
        try:
            is_new = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            if is_new:
                held.callback(_remove_if_empty, path)
            # Before the lock, too: a folder that is refused is not written to at all.
            _earlier(path)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except (OSError, ValueError) as error:
            if is_full_disk(error):
                raise
            why = getattr(error, "strerror", None) or error
            if isinstance(error, FileExistsError):
                why = "a file is there"
            raise UserError(f"the folder {path} cannot be made or used ({why}): name another with --output") from None
        held.enter_context(lock(path, "generate"))
        yield OutputFolder(path, frozenset(_identities(path, _earlier(path))))


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes JSON lines; a number that JSON has no word for is an error of ours."""
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _earlier(folder: Path, besides: str = "") -> set[str]:
    """Paths, relative to the folder, that earlier runs left in it.

    Raises:
      UserError: if something else there would be in the way.
    """
    entries = {entry.name: entry for entry in os.scandir(folder) if entry.name != besides}
    stages = [name for name, entry in entries.items() if _STAGE.fullmatch(name) and entry.is_dir(follow_symlinks=False)]
    lists = [folder / name for name in _LISTS if name in entries]
    for stage in stages:
        lists += [file for file in sorted((folder / stage).iterdir()) if file.name.removeprefix(_EARLIER) in _LISTS]
    named = set(itertools.chain.from_iterable(_named_in(file) for file in lists)) | {
        file.name for file in lists if file.parent == folder
    }
    ours = {name for name in named if name in entries and entries[name].is_file(follow_symlinks=False)}
    others = [
        name
        for name in sorted(entries.keys() - ours - set(stages))
        if not name.startswith(".") and name.lower() not in _OF_DESKTOPS
    ]
    if others and not lists and not stages:
        raise UserError(
            f"{folder} is not empty ({others[0]} is there), and no generations.jsonl says that `generate` filled it: "
            "name an empty or a new folder with --output"
        )
    for name in others:
        # Some file systems take upper and lower case for the same.
        if _IMAGE.fullmatch(name.lower()) or name.lower() in _LISTS:
            raise UserError(
                f"{folder / name} has a name that an answer may take, and was not written by `generate`: move it "
                "away, or name another folder with --output"
            )
    return ours | set(stages)


def _named_in(file: Path) -> Iterator[str]:
    """The images that a list of an earlier run names.

    Raises:
      UserError: if the file is no such list.
    """
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            raise ValueError("no ordinary file")
        with file.open(encoding="utf-8") as lines:
            while line := lines.readline(_LONGEST_LINE):
                value = json.loads(line)
                if file.name.removeprefix(_EARLIER) == ANSWERS_FILE:
                    yield from _images_of(value)
                elif not isinstance(value, dict) or value.keys() != {"line", "error"}:
                    raise ValueError("no line about a failure")
    except (OSError, ValueError, RecursionError):
        raise UserError(
            f"{file} is damaged or was not written by `generate`, so what it names stays: move it away, or name "
            "another folder with --output"
        ) from None


def _images_of(answer: Any) -> Iterator[str]:
    """The images that one line names: plain names that begin with the line's own number."""
    if not isinstance(answer, dict) or not isinstance(answer.get("index"), int) or "task" not in answer:
        raise ValueError("no answer")
    segments = answer.get("segments") or []
    named = [answer.get("image"), *(segment.get("image") for segment in segments if isinstance(segment, dict))]
    for name in named:
        if name is None:
            continue
        match = _IMAGE.fullmatch(name) if isinstance(name, str) else None
        if match is None or int(match[1]) != answer["index"]:
            raise ValueError("no name of an answer")
        yield name


def _identities(folder: Path, names: set[str]) -> Iterator[tuple[int, int]]:
    for name in names:
        found = (folder / name).lstat()
        yield found.st_dev, found.st_ino


def _replace(folder: Path, stage: Path, earlier: set[str]) -> None:
    """Puts what is staged in the place of what earlier runs left; wherever it stops, some list names all of it."""
    new = sorted((file.name for file in stage.iterdir()), key=lambda name: name in _LISTS)
    for name in _LISTS:
        if name in earlier:
            (folder / name).rename(stage / f"{_EARLIER}{name}")
    # Hidden folders last: their lists name what killed runs left beside them.
    for name in sorted(earlier - set(_LISTS), key=lambda name: bool(_STAGE.fullmatch(name))):
        if _STAGE.fullmatch(name):
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()
    for name in new:
        (stage / name).rename(folder / name)
