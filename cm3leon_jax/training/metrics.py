"""What a run tells: one JSON object a logged step in metrics.jsonl, the same in TensorBoard, and a progress bar."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter
from tqdm import tqdm

from cm3leon_jax.files import replacing


class MetricsLog:
    """Appends to WORKDIR/metrics.jsonl and WORKDIR/tensorboard, after dropping what lies past `first_step`."""

    def __init__(self, workdir: Path, first_step: int) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= first_step]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def write_picture(self, step: int, name: str, pixels: UInt8[np.ndarray, "R1 R2 C"]) -> None:
        """One picture, to TensorBoard."""
        self._tensorboard.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._tensorboard.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was cut off by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


class StepClock:
    """Seconds a step, and how many of them went into waiting for data; pauses (saving, evaluation) do not count."""

    def __init__(self, first_step: int, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._restart(first_step)

    def _restart(self, step: int) -> None:
        self._step, self._started = step, time.perf_counter()
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Around the fetching of a batch."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not training."""
        started = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started

    def lap(self, step: int) -> dict[str, float]:
        """Means over the steps since the last lap."""
        steps = max(1, step - self._step)
        seconds = (time.perf_counter() - self._started - self._paused) / steps
        values = {
            "tokens_per_second": self._tokens_per_step / seconds,
            "data_wait_seconds": self._waited / steps,
            "step_seconds": seconds,
        }
        self._restart(step)
        return values


def progress_bar(first_step: int, num_steps: int, shown: bool) -> tqdm:
    """A bar over the steps of a run, with room for what the last logged line said."""
    return tqdm(
        total=num_steps,
        initial=first_step,
        desc="train",
        unit="step",
        disable=not shown,
        dynamic_ncols=True,
        smoothing=0.05,
    )
