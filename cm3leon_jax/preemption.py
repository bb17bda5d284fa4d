"""Lets a training run stop after the same step on every process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils


class PreemptionHandler:
    """Notes SIGTERM and Ctrl-C, so that the loop can save first; a second signal acts at once.

    Among several processes JAX's preemption service passes on the SIGTERM of any of them and finds a step that none of
    them has passed; a Ctrl-C becomes a SIGTERM for it. A context manager that restores the handlers on exit.
    """

    def __init__(self) -> None:
        self._was_sent, self._num_checks = False, 0
        self._has_others = jax.process_count() > 1
        wanted: dict[int, Callable[[int, Any], None]] = {signal.SIGTERM: self._note, signal.SIGINT: self._note}
        if self._has_others:
            wanted = {signal.SIGINT: lambda number, frame: os.kill(os.getpid(), signal.SIGTERM)}
        # Only the main thread may set handlers.
        is_main = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, handler) for number, handler in wanted.items()} if is_main else {}

    def is_due(self) -> bool:
        """Whether to stop now: the same on every process, if each calls this once per step."""
        self._num_checks += 1
        if self._has_others:
            # Not the step: the number must grow even where a run rolls back to an earlier one.
            return multihost_utils.reached_preemption_sync_point(self._num_checks)
        return self._was_sent

    def _note(self, number: int, frame: Any) -> None:
        self._was_sent = True
        self.close()

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> PreemptionHandler:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
