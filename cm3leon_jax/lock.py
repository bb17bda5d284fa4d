"""Keeps two commands from writing one folder, with a lock that ends with its holder.

FOLDER/.lock names the holder. Whether the holder is alive follows from what the file system can do:

- A kernel lock (flock) on the file answers at once among the processes of a host, containers included, and among hosts
  where the file system shares it (NFS, Lustre with -o flock, CephFS, GPFS). It ends with its process.
- In a bucket (gs://, s3://) the lock is an object that only one process can create (storage/lease.py).
- Among hosts whose file system keeps flock local, or has none (gcsfuse and other mounted buckets), the holder touches
  the file periodically. A lock of another host that is not touched for a while is taken over.

Two commands that start within one second on two hosts of a file system without flock can both get in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cm3leon_jax.distributed import all_processes, has_joined, is_coordinator
from cm3leon_jax.errors import UserError
from cm3leon_jax.storage import mirror
from cm3leon_jax.storage.address import address_of
from cm3leon_jax.storage.lease import Lease

LOCK_FILE = ".lock"
# Time between two touches, and without a touch until the holder counts as gone.
_TOUCH_SECONDS, _DEAD_AFTER_SECONDS = 5.0, 20.0
# How long the kernel lock may outlive a killed process, and, on a file server, a dead host.
_RELEASE_SECONDS, _LEASE_SECONDS = 1.0, 120.0
_POLL_SECONDS = 0.1

_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """The command that holds a lock."""

    command: str
    host: str
    # Differs between machines, and between two boots of a machine.
    boot: str
    process: int
    since: str

    @classmethod
    def this_process(cls, command: str) -> Holder:
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            boot = socket.gethostname()
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(command, socket.gethostname(), boot, os.getpid(), since)

    def knows_gone(self, other: Mapping[str, Any]) -> bool:
        """Whether another holder ran on this machine, and has ended."""
        number = other.get("process")
        return other.get("boot") == self.boot and isinstance(number, int) and not _runs(number)

    def __str__(self) -> str:
        return f"`cm3leon {self.command}` (process {self.process} on host {self.host}, since {self.since})"


@contextlib.contextmanager
def lock(folder: str | Path, command: str, name: str = LOCK_FILE, subfolders: bool = True) -> Iterator[None]:
    """Locks a folder for a command while the body runs. All processes of a run call this; the coordinator holds it.

    Once a folder in a bucket is locked, each process has a copy of what is there, with its `subfolders` if wanted; not
    where another `name` says that the lock is of something beside it.
    """
    file = Path(folder) / name
    held: _Held | Lease | None = None
    refusal = ""
    if not has_joined() or is_coordinator():
        try:
            holder, address = Holder.this_process(command), address_of(file)
            held = Lease(address, asdict(holder), holder.knows_gone) if address else _acquire(file, holder)
        except UserError as error:
            refusal = str(error)
        except OSError as error:
            refusal = f"cannot write {file} ({error.strerror}): give a folder that can be written"
    if refusal or (has_joined() and not all_processes(not refusal)):
        raise UserError(refusal or f"{folder} was refused to process 0 of this run: see what it says")
    try:
        if name == LOCK_FILE:
            mirror.share(file.parent, subfolders)
        yield
    finally:
        if held is not None:
            held.release()


class _Held:
    """A lock that this process holds and that a thread touches until its release."""

    def __init__(self, file: Path, descriptor: int, created: Sequence[Path] = ()) -> None:
        """Takes the lock, its open descriptor, and the folders that were created for it, innermost first."""
        self._file, self._descriptor, self._created = file, descriptor, created
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Removes the file, then its kernel lock, so that who waits for the lock notices that the file is gone."""
        self._done.set()
        self._thread.join()
        if _is_same_file(self._file, self._descriptor):
            self._file.unlink(missing_ok=True)
        os.close(self._descriptor)
        # A command that was refused for another reason leaves no empty folder.
        with contextlib.suppress(OSError):
            for folder in self._created:
                folder.rmdir()

    def _touch(self) -> None:
        while not self._done.wait(_TOUCH_SECONDS):
            # The command itself will notice a full or vanished file system.
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)


def _acquire(file: Path, holder: Holder) -> _Held:
    """Takes a lock as soon as its last holder is known to be gone; refuses once that one is known to be alive."""
    created = [folder for folder in file.parents if not folder.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    started, last_touch, is_announced = time.monotonic(), None, False
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        is_ours = _flock(descriptor)
        if not _is_same_file(file, descriptor):
            os.close(descriptor)
            continue
        found, state = _read(descriptor), os.fstat(descriptor)
        touch, waited = (state.st_ino, state.st_mtime_ns), time.monotonic() - started
        is_silent = waited >= _DEAD_AFTER_SECONDS and touch == last_touch
        is_here = found is None or found.boot == holder.boot
        if is_ours is not False and (found is None or is_silent or (is_here and (is_ours or not _runs(found.process)))):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
            os.fsync(descriptor)
            return _Held(file, descriptor, created)
        os.close(descriptor)
        patience = (_RELEASE_SECONDS if is_here else _LEASE_SECONDS) if is_ours is False else _DEAD_AFTER_SECONDS
        if waited > patience or (last_touch and last_touch != touch):
            raise UserError(
                f"{file.parent} is in use by {found or 'another command'}: wait until it has ended, stop it, or give "
                "another folder"
            )
        if not is_announced and not (is_here and is_ours is False):
            log.info(f"{file} is held by {found}: waiting for a sign of life, {patience:g} s at most")
            is_announced = True
        last_touch = touch
        time.sleep(_POLL_SECONDS)


def _runs(process: int) -> bool:
    """Whether this machine has a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _flock(descriptor: int) -> bool | None:
    """Whether this process has the kernel lock of a file now; None where the file system has no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _read(descriptor: int) -> Holder | None:
    """The holder that a lock file names, if any."""
    try:
        found = Holder(**json.loads(os.pread(descriptor, 4096, 0)))
        return found if isinstance(found.process, int) and found.process > 0 else None
    except (ValueError, TypeError):
        return None


def _is_same_file(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
