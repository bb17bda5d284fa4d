"""Writes files and folders whole or not at all, and reads JSON files with a message for each fault."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cm3leon_jax.errors import UserError
from cm3leon_jax.storage import mirror
from cm3leon_jax.storage.address import address_of

# Far above every JSON file that is written here; a larger one would fill the memory before it is refused.
_MAX_JSON_BYTES = 1 << 28


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path next to `path` for the body to write, and renames it to `path` if the body succeeds."""
    path, temporary = _prepared(path)
    temporary.touch()
    mode = temporary.stat().st_mode
    try:
        yield temporary
        # Some libraries write files for their owner alone, whatever the umask says.
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        mirror.publish(temporary, path)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write_folder(path: str | Path) -> Iterator[Path]:
    """Does the same for a folder, which may exist already if it is empty."""
    path, temporary = _prepared(path)
    temporary.mkdir()
    try:
        yield temporary
        mirror.publish_folder(temporary, path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _prepared(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, path.with_name(f".{path.name}.{os.getpid()}.partial")


def remove(path: Path) -> None:
    """Deletes a file, if there is one."""
    mirror.delete(path)
    path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Deletes a folder and all that is in it, if there is one."""
    mirror.delete_below(path)
    shutil.rmtree(path, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Renames a file; in a bucket, the new one is complete before the old one is deleted."""
    mirror.publish(source, target)
    source.rename(target)
    mirror.delete(source)


def size_of(path: Path) -> int | None:
    """The bytes of a file, of an array also where it is in a bucket and not copied yet; None if there is none."""
    return mirror.stored_size(path)


def remove_partial_files(folder: str | Path) -> None:
    """Removes what killed processes left half-written below a folder, where no other process may be writing."""
    for partial in Path(folder).rglob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()


def wait_for(path: Path, seconds: float = math.inf) -> Path:
    """Returns `path` once another process, possibly on another host, has written it."""
    until, pause = time.monotonic() + seconds, 0.01
    is_shared_disk = address_of(path) is None
    while not path.exists() and (is_shared_disk or not mirror.fetch(path)):
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
    """Reads a JSON file; `what` names it in the message when it is missing or damaged."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{what} is damaged: {path} is no ordinary file")
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise UserError(f"{what} is damaged: {path} is longer than {_MAX_JSON_BYTES:,} bytes; write it again")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{what} is missing: no file {path}") from None
    except OSError as error:
        raise UserError(f"{what} cannot be read: {path} ({error.strerror})") from None
    # Bytes that are no text and numbers of thousands of digits raise ValueError, too.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is damaged: {path} is not JSON ({error}); write it again") from None


def read_object(path: str | Path, what: str) -> dict[str, Any]:
    """Reads a file that has to hold a JSON object, like `read_json`."""
    found = read_json(path, what)
    if not isinstance(found, dict):
        raise UserError(f"{what} is damaged: {path} holds a {type(found).__name__}, not an object; write it again")
    return found


def check_format(found: Mapping[str, Any], version: int, what: str, fix: str) -> None:
    """Refuses a record whose `format_version` is not this one."""
    if (stored := found.get("format_version")) != version:
        when = "a later" if isinstance(stored, int) and stored > version else "an earlier"
        found_version = f"format_version {stored}, not {version}"
        raise UserError(f"{what} was made by {when} version of cm3leon_jax ({found_version}): {fix}")


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is that a disk or a quota is used up."""
    while error is not None:
        for number in (errno.ENOSPC, errno.EDQUOT):
            # TensorStore has errors of its own that contain the system's text.
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return True
        error = error.__cause__ or error.__context__
    return False
