"""What a run tells: metrics.jsonl, the same in TensorBoard, and how much it gets done."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.progress import StepLog


class MetricsLog:
    """Appends to WORKDIR/metrics.jsonl and WORKDIR/tensorboard, after dropping what lies past `first_step`.

    `last_seconds` are those of the last line that was dropped: what a start that ended without warning last said.
    """

    def __init__(self, workdir: Path, first_step: int) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self._lines = StepLog(workdir / "metrics.jsonl", first_step)
        dropped = self._lines.dropped
        self.last_seconds = {name: float(value) for name, value in dropped.items() if name.startswith("seconds_")}
        self._tensorboard = _summary_writer()(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line, one point a curve."""
        self._lines.write(step, values)
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def write_picture(self, step: int, name: str, pixels: UInt8[np.ndarray, "R1 R2 C"]) -> None:
        """One picture, to TensorBoard."""
        self._tensorboard.add_image(name, pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """Returns when what was written would outlive a failing host."""
        self._lines.flush()
        self._tensorboard.flush()

    def close(self) -> None:
        """Flushes both."""
        self._lines.close()
        self._tensorboard.close()


def _summary_writer() -> Any:
    """tensorboardX's writer, without PyTorch, which it imports wherever it finds it: seconds and memory for nothing."""
    kept_out = "torch" not in sys.modules
    if kept_out:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if kept_out:
            del sys.modules["torch"]
    return SummaryWriter


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
