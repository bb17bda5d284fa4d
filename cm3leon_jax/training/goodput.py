"""Where the time of a run goes, over all its starts: into steps that count, and into everything else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

# What is not a step that counts: getting ready, compiling, waiting for batches, waiting for a checkpoint to be copied,
# evaluation and sample images, and steps that had to be repeated after a failure.
PARTS = ("startup", "compile", "data_wait", "save", "evaluation", "lost")
# `RunClock.values()` before a run began.
NO_SECONDS = {f"seconds_{name}": 0.0 for name in ("total", *PARTS)}


@dataclass(frozen=True)
class StepWork:
    """The work of a step of the transformer: what tokens per second and MFU are computed from."""

    num_tokens: int
    # By the rule of `flops.py`.
    flops_per_token: float
    num_devices: int
    # Of one device; 0 where it is not known.
    peak_flops: float

    def rates(self, seconds: float) -> dict[str, float]:
        """Tokens per second, those per device, and, where the peak is known, the fraction of it that is used."""
        tokens_per_second = self.num_tokens / seconds
        per_device = tokens_per_second / self.num_devices
        rates = {"tokens_per_second": tokens_per_second, "tokens_per_second_per_device": per_device}
        return rates | ({"mfu": per_device * self.flops_per_token / self.peak_flops} if self.peak_flops else {})


class RunClock:
    """Measures seconds by what they were spent on, including those of earlier starts, and the rates of the steps."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._earlier = dict.fromkeys(("total", *PARTS), 0.0)
        self._seconds = dict.fromkeys(PARTS, 0.0)
        # Longest time for which one save held up the steps.
        self.longest_save = 0.0
        self._restart_lap(0)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Around what is one of PARTS."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - started

    @contextlib.contextmanager
    def timed_save(self) -> Iterator[None]:
        """Around a save between two steps."""
        before = self._seconds["save"]
        with self.timed("save"):
            yield
        self.longest_save = max(self.longest_save, self._seconds["save"] - before)

    def start_steps(self, first_step: int) -> None:
        """Begins the steps after `first_step`; the first time, all seconds so far without a part become start-up."""
        if not self._seconds["startup"]:
            self._seconds["startup"] = time.perf_counter() - self._started - sum(self._seconds.values())
        self._restart_lap(first_step)

    def continue_from(self, saved: Mapping[str, float], last: Mapping[str, float]) -> None:
        """Adds the seconds of earlier starts; those of their steps past the checkpoint are lost.

        `saved` are the `values()` at the checkpoint, `last` the last ones logged, of which some may be missing.
        """
        last = {**saved, **last}
        self._earlier = {name: last[f"seconds_{name}"] for name in self._earlier}
        self._earlier["lost"] += _counted(last) - _counted(saved)

    def roll_back(self, saved: Mapping[str, float]) -> None:
        """Counts the steps since `saved`, the `values()` at a checkpoint, as lost."""
        self._seconds["lost"] += _counted(self.values()) - _counted(saved)

    def values(self) -> dict[str, float]:
        """The fraction of the time that went into steps that count, and all seconds, as they are logged."""
        now = {"total": time.perf_counter() - self._started} | self._seconds
        values = {f"seconds_{name}": earlier + now[name] for name, earlier in self._earlier.items()}
        return {"goodput": _counted(values) / values["seconds_total"], **values}

    def lap(self, step: int, rates: Callable[[float], Mapping[str, float]]) -> dict[str, float]:
        """Rates, of the seconds of a step, and means since the last lap, without pauses; and `values()`."""
        steps = max(1, step - self._lap_step)
        spent = {part: seconds - self._lap_seconds[part] for part, seconds in self._seconds.items()}
        waited = spent.pop("data_wait")
        seconds = (time.perf_counter() - self._lap_started - sum(spent.values())) / steps
        self._restart_lap(step)
        return {**rates(seconds), "data_wait_seconds": waited / steps, "step_seconds": seconds, **self.values()}

    def summary(self) -> str:
        """All parts in one line."""
        values = self.values()
        total = values["seconds_total"]
        parts = ", ".join(f"{part.replace('_', ' ')} {values[f'seconds_{part}'] / total:.1%}" for part in PARTS)
        pause = f"saves held the steps up for at most {self.longest_save:.2f} s"
        return f"goodput: {values['goodput']:.1%} of {total:,.0f} s; {parts}; {pause}"

    def _restart_lap(self, step: int) -> None:
        self._lap_step, self._lap_started, self._lap_seconds = step, time.perf_counter(), dict(self._seconds)


def _counted(values: Mapping[str, float]) -> float:
    return values["seconds_total"] - sum(values[f"seconds_{part}"] for part in PARTS)
