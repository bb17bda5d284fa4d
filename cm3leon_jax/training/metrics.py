"""What a run tells: metrics.jsonl, the same in TensorBoard, and how much it gets done."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.progress import StepLog

# TensorBoard puts curves side by side whose names begin with the same word and a "/".
_GROUPS = {
    "loss": ("loss", "all"),
    "loss_text": ("loss", "text"),
    "loss_image": ("loss", "image"),
    "eval_loss": ("eval_loss", "all"),
    "eval_loss_text": ("eval_loss", "text"),
    "eval_loss_image": ("eval_loss", "image"),
    "num_text": ("num_targets", "text"),
    "num_image": ("num_targets", "image"),
    "eval_num_text": ("eval_num_targets", "text"),
    "eval_num_image": ("eval_num_targets", "image"),
    **{name: ("optimizer", name) for name in ("learning_rate", "grad_norm", "skipped_steps")},
    **{name: ("speed", name) for name in ("tokens_per_second", "tokens_per_second_per_device", "mfu")},
    **{name: ("speed", name) for name in ("step_seconds", "data_wait_seconds")},
    "goodput": ("goodput", "share"),
}

# Longest time for which curves are kept back from TensorBoard.
_FLUSH_SECONDS = 30.0


class MetricsLog:
    """Appends to WORKDIR/metrics.jsonl and WORKDIR/tensorboard, after dropping what lies past `first_step`.

    `last_seconds` are those of the last line that was dropped: what a start that ended without warning last said.
    """

    def __init__(self, workdir: Path, first_step: int, config: Mapping[str, Any] | None = None) -> None:
        """`config` is shown in TensorBoard as this start had it."""
        workdir.mkdir(parents=True, exist_ok=True)
        self._lines = StepLog(workdir / "metrics.jsonl", first_step)
        dropped = self._lines.dropped
        self.last_seconds = {
            name: float(value) for name, value in dropped.items() if name.startswith("seconds_") and value is not None
        }
        self._curves = EventFile(workdir / "tensorboard", first_step)
        if config is not None:
            text = json.dumps(config, indent=2, ensure_ascii=False)
            self._curves.write_text(first_step, "config", f"```json\n{text}\n```")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line, one point a curve."""
        self._lines.write(step, values)
        self._curves.write(step, values)

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "R1 R2 C"]) -> None:
        """One image, to TensorBoard."""
        self._curves.write_image(step, name, pixels)

    def flush(self) -> None:
        """Returns when what was written would outlive a failing host."""
        self._lines.flush()
        self._curves.flush()

    def close(self) -> None:
        """Flushes both."""
        self._lines.close()
        self._curves.close()


class EventFile:
    """A file of TensorBoard's in a folder; what others there have past `first_step` is no longer shown.

    Written on the caller's thread: tensorboardX's own writer waits forever for its thread if that met a full disk.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._formats = _tensorboard_formats()
        folder.mkdir(parents=True, exist_ok=True)
        # Starts in the same second must not write to the same file.
        suffix = f".{os.getpid()}.{first_step}"
        self._events = self._formats.event_file_writer.EventsWriter(str(folder / "events"), suffix)
        self._flushed = time.monotonic()
        session = self._formats.proto.event_pb2.SessionLog
        self._write(first_step + 1, session_log=session(status=session.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point a curve."""
        for name, value in values.items():
            self._write(step, summary=self._formats.summary.scalar(tag(name), value))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def write_text(self, step: int, name: str, markdown: str) -> None:
        """One text."""
        self._write(step, summary=self._formats.summary.text(name, markdown))

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "R1 R2 C"]) -> None:
        """One image."""
        self._write(step, summary=self._formats.summary.image(name, pixels, dataformats="HWC"))
        self.flush()

    def flush(self) -> None:
        """Returns when all of it is on the disk."""
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._events.close()

    def _write(self, step: int, **content: Any) -> None:
        self._events.write_event(self._formats.proto.event_pb2.Event(step=step, wall_time=time.time(), **content))


def tag(name: str) -> str:
    """The name of a curve in TensorBoard; in metrics.jsonl it has no group."""
    if name.startswith("seconds_"):
        return f"goodput/{name}"
    group, _, rest = name.partition("_")
    return "/".join(_GROUPS.get(name, (group, rest or "all")))


def _tensorboard_formats() -> Any:
    """tensorboardX without PyTorch, which it imports wherever it finds it: seconds and memory for nothing."""
    kept_out = "torch" not in sys.modules
    if kept_out:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tensorboardX.event_file_writer
        import tensorboardX.proto.event_pb2
        import tensorboardX.summary
    finally:
        if kept_out:
            del sys.modules["torch"]
    return tensorboardX


@dataclass(frozen=True)
class StepWork:
    """What a step does, to be held against its time."""

    num_tokens: int
    # By the rule of `flops.py`.
    flops_per_token: float
    num_devices: int
    # Of one device; 0 where it is not known.
    peak_flops: float

    def rates(self, seconds: float) -> dict[str, float]:
        """Tokens a second, those of a device, and, where the peak is known, which share of it the model's FLOPs are."""
        tokens_per_second = self.num_tokens / seconds
        each = tokens_per_second / self.num_devices
        rates = {"tokens_per_second": tokens_per_second, "tokens_per_second_per_device": each}
        return rates | ({"mfu": each * self.flops_per_token / self.peak_flops} if self.peak_flops else {})
