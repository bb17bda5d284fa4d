"""Keeps two commands from writing one folder: a lock that dies with its holder.

FOLDER/.lock names who holds it. Who is alive is told by what the file system can do:

- Its kernel lock (flock) tells at once among the processes of a host, containers included, and among hosts where the
  file system carries it across (NFS, Lustre with -o flock, CephFS, GPFS). It is gone with its process, however that
  ended.
- Among hosts whose file system keeps flock to each of them, or has none (gcsfuse and other mounted buckets), the holder
  shows that it lives by touching the file. A lock of another host that is not touched for a while is taken over.

Two commands that start within the same second on two hosts of a file system without flock can both get in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from cm3leon_jax.distributed import all_processes, has_joined, is_coordinator
from cm3leon_jax.errors import UserError

LOCK_FILE = ".lock"
# Between two touches; a lock that is not touched for the longer time has lost its holder.
_TOUCH_SECONDS, _DEAD_AFTER_SECONDS = 5.0, 20.0
# A process that was just killed may take this long to be gone; a file server holds the lock of a dead host so long.
_LET_GO_SECONDS, _LEASE_SECONDS = 1.0, 120.0
_POLL_SECONDS = 0.1

_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    command: str
    host: str
    # Differs from machine to machine, and from one start of a machine to the next.
    boot: str
    process: int
    since: str

    @classmethod
    def this_process(cls, command: str) -> Holder:
        """This process, as of now."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            boot = socket.gethostname()
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(command, socket.gethostname(), boot, os.getpid(), since)

    def __str__(self) -> str:
        return f"`cm3leon {self.command}` (process {self.process} on host {self.host}, since {self.since})"


@contextlib.contextmanager
def lock(folder: str | Path, command: str, name: str = LOCK_FILE) -> Iterator[None]:
    """Holds a folder for a command while the body runs. All processes of a run call this; its first one holds it.

    Raises:
      UserError: if another command that is alive holds the folder, or it cannot be written.
    """
    file = Path(folder) / name
    held, refusal = None, ""
    if not has_joined() or is_coordinator():
        try:
            held = _take(file, Holder.this_process(command))
        except UserError as error:
            refusal = str(error)
        except OSError as error:
            refusal = f"cannot write {file} ({error.strerror}): give a folder that can be written"
    if refusal or (has_joined() and not all_processes(not refusal)):
        raise UserError(refusal or f"{folder} was refused to process 0 of this run: see what it says")
    try:
        yield
    finally:
        if held is not None:
            held.let_go()


class _Held:
    """A lock that this process holds: touched by a thread until it is let go."""

    def __init__(self, file: Path, descriptor: int, made: Sequence[Path] = ()) -> None:
        """
        Args:
          file: the lock.
          descriptor: of the file, opened.
          made: folders that were not there before it, innermost first.
        """
        self._file, self._descriptor, self._made = file, descriptor, made
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()

    def let_go(self) -> None:
        """Removes the file, then the lock on it: who waits for it finds that it is another file by then."""
        self._done.set()
        self._thread.join()
        if _is_same_file(self._file, self._descriptor):
            self._file.unlink(missing_ok=True)
        os.close(self._descriptor)
        # A command that was refused for another reason leaves no empty folder.
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _touch(self) -> None:
        while not self._done.wait(_TOUCH_SECONDS):
            # A full or vanished file system is for the command itself to meet.
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)


def _take(file: Path, holder: Holder) -> _Held:
    """Takes a lock as soon as its last holder is known to be gone.

    Raises:
      UserError: as soon as that holder is known to be alive, or cannot be told from one that is.
    """
    made = [folder for folder in file.parents if not folder.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    started, seen, told = time.monotonic(), None, False
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        is_ours = _flock(descriptor)
        if not _is_same_file(file, descriptor):
            os.close(descriptor)
            continue
        found, state = _read(descriptor), os.fstat(descriptor)
        touched, waited = (state.st_ino, state.st_mtime_ns), time.monotonic() - started
        is_silent = waited >= _DEAD_AFTER_SECONDS and touched == seen
        if is_ours is not False and (found is None or _has_died(found, holder, is_ours) or is_silent):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
            os.fsync(descriptor)
            return _Held(file, descriptor, made)
        os.close(descriptor)
        is_here = found is None or found.boot == holder.boot
        patience = (_LET_GO_SECONDS if is_here else _LEASE_SECONDS) if is_ours is False else _DEAD_AFTER_SECONDS
        if waited > patience or (seen and seen != touched):
            raise UserError(
                f"{file.parent} is in use by {found or 'another command'}: wait until it has ended, stop it, or give "
                "another folder"
            )
        if not told and not (is_here and is_ours is False):
            print(f"{file} is held by {found}: waiting for a sign of life, {patience:g} s at most", flush=True)
            told = True
        seen = touched
        time.sleep(_POLL_SECONDS)


def _has_died(found: Holder, holder: Holder, is_ours: bool | None) -> bool:
    """Whether a holder on this machine is gone: its kernel lock is, or its process where there are no such locks."""
    if found.boot != holder.boot:
        return False
    if is_ours:
        return True
    try:
        os.kill(found.process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _flock(descriptor: int) -> bool | None:
    """Whether this process has the kernel's lock on a file now; None where the file system has no such locks."""
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
    """Who holds a lock by its file; None where it names nobody."""
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
