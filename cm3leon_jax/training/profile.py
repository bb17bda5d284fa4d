"""Traces some steps, to see in TensorBoard or Perfetto where their time goes."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import jax

from cm3leon_jax.errors import UserError
from cm3leon_jax.storage import mirror

log = logging.getLogger(__name__)


class Profile:
    """Writes a trace of the steps `first` to `last` to a folder of TensorBoard's; of none by default."""

    def __init__(self, steps: str = "", folder: Path = Path()) -> None:
        """Takes "FIRST:LAST", both traced, or "", and TensorBoard's folder. Raises a `UserError` for other `steps`."""
        self._folder, self._is_running = folder, False
        found = re.fullmatch(r"(\d+):(\d+)", steps)
        self._first, self._last = (int(found[1]), int(found[2])) if found else (0, -1)
        if steps and not 1 <= self._first <= self._last:
            raise UserError(f"--profile={steps}: write the first and the last step, such as --profile=20:24")

    def before(self, step: int) -> None:
        """Starts the trace before its first step (or the first that this start of the run has of it)."""
        if not self._is_running and self._first <= step <= self._last:
            self._is_running = True
            jax.profiler.start_trace(str(self._folder))

    def after(self, step: int, result: Any) -> None:
        """Ends the trace once its last step is done on the devices."""
        if self._is_running and step >= self._last:
            jax.block_until_ready(result)
            self.close()
            log.info(f"a trace of the steps up to {step} is in {self._folder}")

    def close(self) -> None:
        """Ends a trace that a stop cut short."""
        if self._is_running:
            self._is_running, self._first = False, self._last + 1
            jax.profiler.stop_trace()
            mirror.publish_files(self._folder / "plugins", self._folder / "plugins")
