"""Keeps local copies of a bucket's folders in step with it.

What one process writes is in the bucket when the call that wrote it returns (`publish`, `delete`). What others wrote is
seen after `refresh`, which commands call at their start, for a folder that they lock, and at the barriers between their
processes. So a folder in a bucket is to its processes what a shared disk is at these moments.

Arrays, which are memory-mapped, are copied when they are opened (`fetch_arrays`), everything else by `refresh`. A copy
is complete or absent: it is received under another name, and compared with the size and checksum in the bucket.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from cm3leon_jax.storage import objects
from cm3leon_jax.storage.address import address_of, cache_folder
from cm3leon_jax.storage.cache_size import keep, make_room
from cm3leon_jax.storage.objects import (
    StoredObject,
    delete_object,
    download,
    find_object,
    in_threads,
    list_folder,
    list_objects,
    upload,
    write_object_bytes,
)

# Copied when they are opened.
_ARRAY = re.compile(r".*\.npy|tokens-\d+\.bin|examples-[0-9a-f]+\.jsonl\.gz")
# Folders of a run that have ways of their own, or that no command reads.
_NOT_COPIED = frozenset({"checkpoints", "tensorboard", "wandb"})

# Objects below the folders that were refreshed, as they were listed last, by address.
_listed: dict[str, StoredObject] = {}
# Folders that are refreshed at barriers, and whether their subfolders are, too.
_shared: dict[Path, bool] = {}


def refresh(folder: Path, whole: bool = True) -> None:
    """Makes the copy of a folder, or of a single object, what is in the bucket now; arrays are only listed.

    With `whole` False, nothing below its subfolders. Does nothing for a local path.
    """
    address = address_of(folder)
    if address is None:
        return
    keep(folder)
    # Who publishes from now on is newer than the list.
    since = time.time_ns()
    found, folders = (list_objects(address), []) if whole else list_folder(address)
    for name in _NOT_COPIED.intersection(folders):
        # The empty folder shows that there is something.
        (folder / name).mkdir(parents=True, exist_ok=True)
    if found and _is_unfinished(address):
        found = {}
    if not found and not folders and (single := find_object(address)) is not None:
        _receive_if_changed((folder, single))
        return
    start = f"{address}/"
    for name in [name for name in _listed if name.startswith(start) and (whole or "/" not in name[len(start) :])]:
        del _listed[name]
    _listed.update({f"{address}/{name}": entry for name, entry in found.items()})
    wanted = []
    for name, entry in found.items():
        parents = PurePosixPath(name).parents[-2::-1]
        if skipped := next((parent for parent in parents if parent.name in _NOT_COPIED), None):
            (folder / skipped).mkdir(parents=True, exist_ok=True)
        elif not name.endswith(".lock"):
            wanted.append((folder / name, entry))
    _drop_deleted(folder, {path for path, _ in wanted}, since, whole)
    for _ in in_threads(_receive_if_changed, [pair for pair in wanted if not is_array(pair[0])]):
        pass
    for path, entry in wanted:
        if is_array(path) and path.exists() and not _is_copy(path, entry.version):
            path.unlink(missing_ok=True)


def share(folder: Path, whole: bool = True) -> None:
    """Refreshes a folder now, and at every barrier from now on."""
    if address_of(folder) is not None:
        _shared[folder] = whole
        refresh(folder, whole)


def refresh_shared() -> None:
    """Refreshes all that `share` named."""
    for folder, whole in _shared.items():
        refresh(folder, whole)


def fetch(path: Path) -> bool:
    """Copies a single object, if it is not copied yet; returns whether there is one."""
    address = address_of(path)
    entry = find_object(address) if address else None
    if entry is None:
        return False
    _receive_if_changed((path, entry))
    return True


def fetch_arrays(paths: Sequence[Path]) -> None:
    """Copies arrays that are about to be opened, several at a time; returns at once for local paths."""
    remote = [path for path in paths if address_of(path) is not None and not path.exists()]
    for _ in in_threads(fetch, remote):
        pass


def stored_size(path: Path) -> int | None:
    """The bytes of a file; of an array that is not copied yet, those in the bucket. None if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        entry = _listed.get(address_of(path) or "")
        return None if entry is None else entry.size


def publish(temporary: Path, path: Path) -> None:
    """Writes the object that `path` is the copy of, from a file that is complete and is about to get that name."""
    if (address := address_of(path)) is not None:
        entry = upload(temporary, address)
        _listed[address] = entry
        with _copied(path) as record:
            _note(record, temporary, entry.version)


def publish_folder(temporary: Path, folder: Path) -> None:
    """Writes all objects below the address that `folder` is the copy of; until the last one, none of them is seen."""
    if (address := address_of(folder)) is None:
        return
    if _is_unfinished(address):
        delete_below(folder)
    write_object_bytes(_unfinished(address), b"")
    publish_files(temporary, folder)
    delete_object(_unfinished(address))


def publish_files(source: Path, folder: Path) -> None:
    """Writes the objects below the address that `folder` is the copy of, from the files below another."""
    if address_of(folder) is not None:
        files = [file for file in source.rglob("*") if file.is_file()]
        for _ in in_threads(lambda file: publish(file, folder / file.relative_to(source)), files):
            pass


def _unfinished(address: str) -> str:
    """The object that is there while a folder is being written."""
    parent, _, name = address.rpartition("/")
    return f"{parent}/.{name}.partial"


def _is_unfinished(address: str) -> bool:
    is_bucket = address.count("/") == 2
    return not is_bucket and find_object(_unfinished(address)) is not None


def delete(path: Path) -> None:
    """Deletes the object that a path is the copy of, before its copy."""
    if (address := address_of(path)) is not None:
        delete_object(address)
        _listed.pop(address, None)


def delete_below(folder: Path) -> None:
    """Deletes all objects below the address that a folder is the copy of."""
    if (address := address_of(folder)) is not None:
        objects.delete_below(address)
        for name in [name for name in _listed if name.startswith(f"{address}/")]:
            del _listed[name]


def is_array(path: Path) -> bool:
    return _ARRAY.fullmatch(path.name) is not None


def _drop_deleted(folder: Path, wanted: set[Path], since: int, whole: bool) -> None:
    """Removes copies of objects that are no more; not what was published while the bucket was listed."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if whole and name not in _NOT_COPIED]
        for name in files:
            path = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):
                if path not in wanted and path.stat().st_ctime_ns < since and not name.endswith(".partial"):
                    path.unlink()


def _receive_if_changed(pair: tuple[Path, StoredObject]) -> None:
    """Makes a copy of an object unless it is there; of several processes on a host, one does it."""
    path, entry = pair
    with _copied(path) as record:
        if path.is_file() and _version(record, path) == entry.version:
            return
        make_room(entry.size)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            try:
                received = download(address_of(path) or "", temporary)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # Something else has filled the disk meanwhile.
                temporary.unlink(missing_ok=True)
                make_room(entry.size)
                received = download(address_of(path) or "", temporary)
            if received is None:
                # It was deleted meanwhile.
                path.unlink(missing_ok=True)
                return
            # Sources are compared by their times.
            os.utime(temporary, (received.modified, received.modified))
            _note(record, temporary, received.version)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _is_copy(path: Path, version: str) -> bool:
    with _copied(path) as record:
        return _version(record, path) == version


@contextlib.contextmanager
def _copied(path: Path) -> Iterator[IO[str]]:
    """Opens the record of a copy, and holds off the other processes that would make or replace this copy."""
    records = cache_folder() / ".records" / path.relative_to(cache_folder())
    records.parent.mkdir(parents=True, exist_ok=True)
    with records.with_name(f"{records.name}.json").open("a+") as record:
        fcntl.flock(record, fcntl.LOCK_EX)
        yield record


def _note(record: IO[str], file: Path, version: str) -> None:
    """Records which version of its object a file is, as it is now."""
    state = file.stat()
    record.seek(0)
    record.truncate()
    json.dump({"version": version, "size": state.st_size, "time": state.st_mtime_ns}, record)
    record.flush()


def _version(record: IO[str], path: Path) -> str:
    """The version of which a copy is; empty if it was changed since, or there is none."""
    record.seek(0)
    try:
        noted, state = json.load(record), path.stat()
    except (ValueError, OSError):
        return ""
    return noted["version"] if (noted["size"], noted["time"]) == (state.st_size, state.st_mtime_ns) else ""
