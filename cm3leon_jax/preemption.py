"""The wish that a run stops, behind the same step on every process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils


class PreemptionHandler:
    """Notes SIGTERM and Ctrl-C, so that the loop can save first; a second one acts at once.

    Among several processes JAX's preemption service passes on the SIGTERM of any of them, and finds a step that none of
    them is past; a Ctrl-C becomes a SIGTERM for it.

    A context manager: leaving it puts the handlers of before back.
    """

    def __init__(self) -> None:
        self._was_sent = False
        self._asked = 0
        self._has_others = jax.process_count() > 1
        # Only the main thread may set handlers.
        is_main = threading.current_thread() is threading.main_thread()
        wanted: dict[int, Callable[[int, Any], None]] = {signal.SIGTERM: self._note, signal.SIGINT: self._note}
        if self._has_others:
            wanted = {signal.SIGINT: lambda number, frame: os.kill(os.getpid(), signal.SIGTERM)}
        self._before = {number: signal.signal(number, handler) for number, handler in wanted.items()} if is_main else {}

    def is_due(self) -> bool:
        """Whether to stop now: the same on every process, if each asks once a step."""
        self._asked += 1
        if self._has_others:
            # Counted here, since the number must grow where a run goes back to an earlier step.
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self._was_sent

    def _note(self, number: int, frame: Any) -> None:
        self._was_sent = True
        self.close()

    def close(self) -> None:
        """Puts the handlers of before back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> PreemptionHandler:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
