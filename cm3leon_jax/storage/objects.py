"""The operations on objects of a bucket: each is tried again while the store is busy or a connection breaks.

`gs://` goes through gcsfs and `s3://` through s3fs, which find credentials in the clouds' own ways: the environment, a
profile, the metadata server. STORAGE_EMULATOR_HOST and AWS_ENDPOINT_URL name other servers.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import importlib.util
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from cm3leon_jax.errors import RestartError, UserError

# Tries of an operation, and seconds before the second; each wait is twice the one before, up to the longest.
_TRIES, _FIRST_WAIT, _LONGEST_WAIT = 8, 0.5, 30.0
_NUM_THREADS = 8
_LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class StoredObject:
    """What a store says of an object."""

    size: int
    # Another one after every write.
    version: str
    # Seconds since the epoch.
    modified: float
    # Hexadecimal; empty where the store has none, as of an object of several parts.
    md5: str


class _Damaged(Exception):
    """A transfer that ended early or arrived with other bytes; it is worth another try."""


def check_library(scheme: str, name: str) -> None:
    """Refuses an address, given as `name`, where the library for its scheme is not installed."""
    library = _LIBRARIES[scheme]
    if importlib.util.find_spec(library) is None:
        missing = f"{scheme}:// needs {library}, which is not installed"
        raise UserError(f"{name}: {missing}: pip install 'cm3leon_jax[cloud]'")


@functools.cache
def _file_system(scheme: str) -> Any:
    check_library(scheme, f"{scheme}://")
    # The hierarchical buckets that this looks for would cost a request, and emulators do not know it.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "gs" and os.environ.get("STORAGE_EMULATOR_HOST"):
        options["token"] = "anon"
    try:
        return fsspec.filesystem(scheme, **options)
    except Exception as error:
        raise UserError(f"{scheme}:// cannot be used ({_in_short(error)}): {_CREDENTIALS[scheme]}") from None


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_CREDENTIALS = {
    "gs": "see that GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login` or the machine's service "
    "account gives the right to it",
    "s3": "see that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role gives the right to "
    "it",
}


def _tried(address: str, what: str, operation: Callable[[Any], _Result]) -> _Result:
    """Runs an operation on a store until it succeeds.

    Raises:
      FileNotFoundError, FileExistsError: as the store says.
      UserError: if the bucket does not exist, or may not be used.
      OSError: if the disk here is full.
      RestartError: if the store could not be reached for minutes.
    """
    scheme = address.partition("://")[0]
    store, wait = _file_system(scheme), _FIRST_WAIT
    for attempt in range(1, _TRIES + 1):
        try:
            return operation(store)
        except (FileNotFoundError, FileExistsError, UserError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                # Of the disk here: the store has nothing to do with it.
                raise
            if _is_refusal(error):
                raise UserError(f"{address} cannot be {what} ({_in_short(error)}): {_CREDENTIALS[scheme]}") from None
            if attempt == _TRIES:
                raise RestartError(
                    f"{address} cannot be {what} after {_TRIES} tries ({_in_short(error)}); run the same command again "
                    "once the store answers"
                ) from error
            log.debug("%s cannot be %s (%s), try %d", address, what, _in_short(error), attempt)
            # Processes that were turned away together come back at different times.
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, _LONGEST_WAIT)
    raise AssertionError("the last try returns or raises")


def _is_refusal(error: Exception) -> bool:
    """Whether a store says that the caller may not do something, now or later."""
    name = type(error).__name__
    if isinstance(error, PermissionError) or name in ("NoCredentialsError", "DefaultCredentialsError"):
        return True
    # What gcsfs makes of 401 and 403.
    return getattr(error, "code", None) in (401, 403) or str(error).startswith("Forbidden")


def _in_short(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _stored(info: dict[str, Any]) -> StoredObject:
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    if "md5Hash" in info:
        md5 = base64.b64decode(info["md5Hash"]).hex()
    else:
        # The tag of an object that was sent in one part is its MD5.
        md5 = etag if len(etag) == 32 and "-" not in etag else ""
    when = info.get("mtime") or info.get("LastModified")
    modified = when.timestamp() if isinstance(when, datetime) else 0.0
    return StoredObject(int(info["size"]), str(info.get("generation") or etag), modified, md5)


def find_object(address: str) -> StoredObject | None:
    """What the store says of an object; None if there is none."""
    try:
        info = _tried(address, "looked up", lambda store: store.info(address))
    except FileNotFoundError:
        return None
    return _stored(info) if info["type"] == "file" else None


def list_objects(address: str) -> dict[str, StoredObject]:
    """All objects below an address, by what follows it; the address itself is none of them."""
    try:
        found = _tried(address, "listed", lambda store: store.find(address, detail=True))
    except FileNotFoundError:
        # Of a bucket that does not exist; who writes there hears of it.
        return {}
    start = address.partition("://")[2].rstrip("/") + "/"
    return {
        name.removeprefix(start): _stored(info)
        for name, info in found.items()
        if name.startswith(start) and not name.endswith("/")
    }


def read_object_bytes(address: str) -> bytes | None:
    """The content of a small object; None if there is none."""
    try:
        return _tried(address, "read", lambda store: store.cat_file(address))
    except FileNotFoundError:
        return None


def write_object_bytes(address: str, content: bytes) -> None:
    """Writes a small object, whole or not at all."""
    _writing(address, lambda store: store.pipe_file(address, content))


def create_object(address: str, content: bytes) -> bool:
    """Writes a small object unless there is one; of several callers at once, one alone succeeds."""
    try:
        _writing(address, lambda store: store.pipe_file(address, content, mode="create"))
    except FileExistsError:
        # A try whose answer was lost may have succeeded.
        return read_object_bytes(address) == content
    return True


def list_folder(address: str) -> tuple[dict[str, StoredObject], list[str]]:
    """The objects directly below an address, and the names of the folders there."""
    try:
        found = _tried(address, "listed", lambda store: store.ls(address, detail=True))
    except FileNotFoundError:
        return {}, []
    start = address.partition("://")[2].rstrip("/") + "/"
    entries = {info["name"].removeprefix(start).rstrip("/"): info for info in found if info["name"].startswith(start)}
    files = {name: _stored(info) for name, info in entries.items() if name and info["type"] == "file"}
    return files, [name for name, info in entries.items() if name and info["type"] == "directory"]


def delete_below(address: str) -> None:
    """Deletes all objects below an address."""
    for _ in in_threads(delete_object, [f"{address}/{name}" for name in list_objects(address)]):
        pass


def move_object(source: str, target: str) -> None:
    """Renames an object within its bucket; a `FileNotFoundError` if there is none."""
    _tried(source, "copied", lambda store: store.cp_file(source, target))
    delete_object(source)


def move_below(source: str, target: str) -> None:
    """Renames all objects below an address."""
    for _ in in_threads(lambda name: move_object(f"{source}/{name}", f"{target}/{name}"), list(list_objects(source))):
        pass


def delete_object(address: str) -> None:
    """Deletes an object, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        _tried(address, "deleted", lambda store: store.rm_file(address))


def upload(file: Path, address: str) -> StoredObject:
    """Writes an object from a file, whole or not at all; compares what the store has with what was sent."""
    size, md5 = file.stat().st_size, _md5(file)

    def sent(store: Any) -> StoredObject:
        store.put_file(str(file), address)
        found = _stored(store.info(address))
        if found.size != size or (found.md5 and found.md5 != md5):
            raise _Damaged(f"{found.size:,} bytes arrived of {size:,}, or others than were sent")
        return found

    return _writing(address, sent)


def download(address: str, file: Path) -> StoredObject | None:
    """Writes an object to a file that nobody reads yet, and returns what it is, or None if there is none.

    Compares size and checksum.
    """

    def received(store: Any) -> StoredObject:
        found = _stored(store.info(address))
        store.get_file(address, str(file))
        if file.stat().st_size != found.size or (found.md5 and found.md5 != _md5(file)):
            raise _Damaged(f"{file.stat().st_size:,} bytes arrived of {found.size:,}, or others than are stored")
        return found

    try:
        return _tried(address, "read", received)
    except FileNotFoundError:
        if not file.parent.is_dir():
            raise
        return None


def _writing(address: str, operation: Callable[[Any], _Result]) -> _Result:
    try:
        return _tried(address, "written", operation)
    except FileNotFoundError:
        bucket = "/".join(address.split("/")[:3])
        raise UserError(f"{address} cannot be written: no bucket {bucket}; create it, or name another") from None


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def in_threads(work: Callable[[_Item], _Result], items: list[_Item]) -> Iterator[_Result]:
    """The results of many transfers in order, several of which run at a time; raises what the first failure raised."""
    if len(items) <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="storage") as threads:
        yield from threads.map(work, items)
