"""Where the time of a run goes, over all its starts: into steps that count, and into everything else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from cm3leon_jax.training.metrics import StepWork

# What is not a step that counts: getting ready, compiling, waiting for batches, waiting for a checkpoint to be copied,
# held-out loss and sample images, and steps that were done and must be done again after a fault.
PARTS = ("startup", "compile", "data_wait", "save", "evaluation", "lost")
# `RunClock.values()` before a run began.
NO_SECONDS = {f"seconds_{name}": 0.0 for name in ("total", *PARTS)}


class RunClock:
    """Seconds by what they were spent on, from `seconds` of earlier starts on; and the rates of the steps."""

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

    def ready(self, first_step: int) -> None:
        """The next step is the one after `first_step`; before the first one, all that had no name was getting ready."""
        if not self._seconds["startup"]:
            self._seconds["startup"] = time.perf_counter() - self._started - sum(self._seconds.values())
        self._restart_lap(first_step)

    def record_rollback(self, then: Mapping[str, float], last: Mapping[str, float] | None = None) -> None:
        """The run goes on at a checkpoint; the steps behind it must be done again.

        Args:
          then: `values()` at the checkpoint.
          last: the last ones known of an earlier start of the run; None if it is this start that goes back.
        """
        if last is None:
            self._seconds["lost"] += _counted(self.values()) - _counted(then)
        else:
            # A damaged line of the log may lack some.
            last = {**then, **last}
            self._earlier = {name: last[f"seconds_{name}"] for name in self._earlier}
            self._earlier["lost"] += _counted(last) - _counted(then)

    def values(self) -> dict[str, float]:
        """The share of the time that went into steps that count, and all seconds, as they are logged."""
        now = {"total": time.perf_counter() - self._started} | self._seconds
        values = {f"seconds_{name}": earlier + now[name] for name, earlier in self._earlier.items()}
        return {"goodput": _counted(values) / values["seconds_total"], **values}

    def lap(self, step: int, work: StepWork) -> dict[str, float]:
        """Rates and means over the steps since the last lap, pauses left out; and `values()`."""
        steps = max(1, step - self._lap_step)
        spent = {part: seconds - self._lap_seconds[part] for part, seconds in self._seconds.items()}
        waited = spent.pop("data_wait")
        seconds = (time.perf_counter() - self._lap_started - sum(spent.values())) / steps
        self._restart_lap(step)
        return {
            **work.rates(seconds),
            "data_wait_seconds": waited / steps,
            "step_seconds": seconds,
            **self.values(),
        }

    def summary(self) -> str:
        """The split in a line."""
        values = self.values()
        total = values["seconds_total"]
        parts = ", ".join(f"{part.replace('_', ' ')} {values[f'seconds_{part}'] / total:.1%}" for part in PARTS)
        pause = f"saves held the steps up for at most {self.longest_save:.2f} s"
        return f"goodput: {values['goodput']:.1%} of {total:,.0f} s; {parts}; {pause}"

    def _restart_lap(self, step: int) -> None:
        self._lap_step, self._lap_started, self._lap_seconds = step, time.perf_counter(), dict(self._seconds)


def _counted(values: Mapping[str, float]) -> float:
    return values["seconds_total"] - sum(values[f"seconds_{part}"] for part in PARTS)
