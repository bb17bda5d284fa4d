"""A lock in a bucket, for processes that share nothing else: an object that names its holder, who writes it repeatedly.

Only one of several processes can create an object. One that is not written for a while belongs to a holder who is gone;
of the processes that wait for that, the one that creates the object `.lock.claim` takes the lock over.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cm3leon_jax.errors import EXIT_RESTART, RestartError, UserError
from cm3leon_jax.storage.objects import create_object, delete_object, read_object_bytes, write_object_bytes

# Time between two writes, and without one until the holder counts as gone.
_WRITE_SECONDS, _GONE_AFTER_SECONDS = 5.0, 25.0
_POLL_SECONDS = 0.5

log = logging.getLogger(__name__)


class Lease:
    """A lock that this process holds until `release`."""

    def __init__(self, address: str, holder: Mapping[str, Any], is_gone: Callable[[Mapping[str, Any]], bool]) -> None:
        """Waits until the lock is free, or its holder gone.

        Raises a `UserError` that names the holder if that one lives. `is_gone` says of a holder whether it is known to
        have ended, without having to wait.
        """
        self._address, self._holder = address, dict(holder)
        self._count = 0
        seen, since = b"", time.monotonic()
        while not create_object(address, content := self._content()):
            found = read_object_bytes(address)
            if found is None:
                continue
            if found != seen and seen:
                raise UserError(
                    f"{address.rpartition('/')[0]} is in use by {_named(found)}: wait until it has ended, stop it, or "
                    "give another folder"
                )
            if not seen:
                seen, since = found, time.monotonic()
                if not is_gone(_parsed(found)):
                    log.info(f"{address} is held by {_named(found)}: waiting for a sign of life")
            waited = time.monotonic() - since
            if (waited > _GONE_AFTER_SECONDS or is_gone(_parsed(found))) and self._takes_over(found, content, waited):
                break
            time.sleep(_POLL_SECONDS)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Deletes the object, unless another process has taken it over."""
        self._done.set()
        self._thread.join()
        if self._is_ours(read_object_bytes(self._address)):
            delete_object(self._address)

    def _takes_over(self, stale: bytes, content: bytes, waited: float) -> bool:
        """Replaces the content of a lock whose holder is gone; False if another process is about to."""
        claim = f"{self._address}.claim"
        if not create_object(claim, content):
            # The one that claimed it may be gone, too.
            if waited > 2 * _GONE_AFTER_SECONDS:
                delete_object(claim)
            return False
        is_stale = read_object_bytes(self._address) == stale
        if is_stale:
            write_object_bytes(self._address, content)
        delete_object(claim)
        return is_stale

    def _content(self) -> bytes:
        self._count += 1
        return json.dumps(self._holder | {"count": self._count}).encode()

    def _is_ours(self, found: bytes | None) -> bool:
        stored = _parsed(found or b"")
        stored.pop("count", None)
        return stored == self._holder

    def _write(self) -> None:
        while not self._done.wait(_WRITE_SECONDS):
            try:
                if self._is_ours(read_object_bytes(self._address)):
                    write_object_bytes(self._address, self._content())
                    continue
                reason = "another process has taken it over, since this one was silent for too long"
            except (UserError, RestartError) as error:
                reason = str(error)
            if self._done.is_set():
                return
            # Another process may write there now.
            log.error(f"the lock {self._address} is lost ({reason}): start the same command again")
            os._exit(EXIT_RESTART)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _named(content: bytes) -> str:
    found = _parsed(content)
    if "command" not in found:
        return "another command"
    return f"`cm3leon {found['command']}` (process {found.get('process')} on host {found.get('host')})"
