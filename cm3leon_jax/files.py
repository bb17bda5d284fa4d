"""Files that are whole or absent: everything is written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cm3leon_jax.errors import UserError

# Far above every file that is written here; a larger one would be read into memory before it is refused.
_LONGEST_JSON = 1 << 28


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` for the body to write, and renames it to `path` if the body succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.touch()
    ordinary = temporary.stat().st_mode
    try:
        yield temporary
        # Some libraries write files for their owner alone, whatever the umask says.
        if temporary.stat().st_mode != ordinary:
            temporary.chmod(ordinary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder, which may be there already if it is empty."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_partial_files(folder: str | Path) -> None:
    """Removes what killed processes left half-written anywhere below a folder, where no other process writes now."""
    for left_over in Path(folder).rglob(".*.partial"):
        if left_over.is_dir():
            shutil.rmtree(left_over)
        else:
            left_over.unlink()


def wait_for(path: Path, seconds: float = math.inf) -> Path:
    """Returns a file's path as soon as it is there: another process writes it, maybe on another host.

    Raises:
      UserError: if it is not there after so many seconds.
    """
    until, pause = time.monotonic() + seconds, 0.01
    while not path.exists():
        if time.monotonic() > until:
            raise UserError(
                f"{path} was written by another process of the run, but is not to be seen here after {seconds:g} s: "
                "give a folder that all processes share"
            )
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
    return path


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, what: str) -> Any:
    """Reads a JSON file; `what` names it in the message when it is missing, cannot be read or is damaged."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{what} is damaged: {path} is no ordinary file")
        if path.stat().st_size > _LONGEST_JSON:
            raise UserError(f"{what} is damaged: {path} is longer than {_LONGEST_JSON:,} bytes; write it again")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{what} is missing: no file {path}") from None
    except OSError as error:
        raise UserError(f"{what} cannot be read: {path} ({error.strerror})") from None
    # A ValueError is also what bytes that are no text and numbers of thousands of digits raise.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is damaged: {path} is not JSON ({error}); write it again") from None


def read_object(path: str | Path, what: str) -> dict[str, Any]:
    """The same for a file that has to hold a JSON object."""
    found = read_json(path, what)
    if not isinstance(found, dict):
        raise UserError(f"{what} is damaged: {path} holds a {type(found).__name__}, not an object; write it again")
    return found


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is that a disk or a quota is used up."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # TensorStore has errors of its own, with the system's text in them.
        if any(text in str(error) for text in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))):
            return True
        error = error.__cause__ or error.__context__
    return False
