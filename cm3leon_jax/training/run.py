"""Describes a training: what is trained, on which batches, and what is kept of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Num, UInt8

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.training.config import RecoveryConfig
from cm3leon_jax.training.goodput import NO_SECONDS

# Any pytree, and what `batches` yields.
State = Any
Batch = Any
Metrics = Mapping[str, Num[Array, ""]]
Image = UInt8[np.ndarray, "height width C"]
# Ranges of batches, each its first index and the one after its last, in order.
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Start:
    """The point from which a run goes on."""

    step: int
    # Empty for a run that is finished.
    state: Any
    # For people, such as "from scratch".
    description: str = "from scratch"
    # Where the first parameters of the run came from.
    origin: str = "random numbers"
    # Batches that are never trained on again, and how often the run was rolled back.
    skipped: Ranges = ()
    num_rollbacks: int = 0
    batch_hint: Any = None
    # `RunClock.values()` at that time.
    seconds: Mapping[str, float] = dataclasses.field(default_factory=lambda: NO_SECONDS)

    def meta(self, batch_hint: Any, seconds: Mapping[str, float]) -> dict[str, Any]:
        """What a checkpoint of the run says, besides its identity."""
        return {
            "origin": self.origin,
            "skipped_batches": self.skipped,
            "num_rollbacks": self.num_rollbacks,
            "batch_hint": batch_hint,
            "seconds": seconds,
        }


@dataclass(frozen=True)
class Evaluation:
    """Numbers measured every so many steps (never, if 0) and after the last one; they join the step's logged line."""

    every: int
    # (step, state) -> numbers by name; called on every process.
    measure: Callable[[int, State], Mapping[str, float]]


@dataclass(frozen=True)
class Images:
    """An image made every so many steps (never, if 0) and after the last one, once the step is saved."""

    every: int
    name: str
    # (step, state) -> a grid, or None where there is nothing to show; called on every process.
    make: Callable[[int, State], Image | None]


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What is trained, on which batches, and what is kept of it."""

    # In messages and in the progress line, such as "image tokenizer".
    name: str
    num_steps: int
    # The state of a fresh run; an imported one's parameters are in the checkpoints.
    init: Callable[[Checkpoints], Start]
    # Shapes, types and shardings of the state, to restore a checkpoint into.
    abstract_state: State
    # Compiled; the state before may be donated. Metrics are replicated scalars: "loss", maybe "grad_norm".
    # With `recovery` they include "skipped_in_a_row", the number of steps up to this one that changed nothing.
    step: Callable[[State, Batch], tuple[State, Metrics]]
    # (first, stop, hint) -> the global batches first .. stop - 1, on the devices. A batch follows from its index alone.
    # What else the step needs to know, such as a phase, is part of the batch.
    batches: Callable[[int, int, Any], Iterator[Batch]]
    # What a checkpoint must agree with, as nested dicts of JSON; and the dotted names in it that may change at a resume
    # (`config_part.changeable`).
    identity: Mapping[str, Any]
    may_change: Collection[str] = ()
    # The config's field that `num_steps` comes from, and how much of it a step takes.
    length_field: str
    length_per_step: int = 1
    # What to do when the training diverges: ends a message.
    fix: str

    workdir: Path
    # Folder of the checkpoints.
    checkpoints: Path
    keep_checkpoints: int = 2
    save_every: int
    log_every: int
    loggers: Sequence[str] = ("jsonl", "tensorboard")
    # Keeps the logs of several trainings in one workdir apart, as in image_tokenizer_metrics.jsonl.
    log_name: str = ""
    # All values of the run, for loggers that show them.
    config: Mapping[str, Any]
    # Logged values -> the progress line.
    describe: Callable[[Mapping[str, float]], str]
    # Measured values -> those that mean something.
    select: Callable[[Mapping[str, float]], Mapping[str, float]] = dict
    # Seconds of a step -> rates, such as images per second.
    rates: Callable[[float], Mapping[str, float]]
    evaluations: Sequence[Evaluation] = ()
    images: Sequence[Images] = ()

    # Rolls back after too many skipped steps; None: the step skips none, and a loss that is not finite ends the run.
    recovery: RecoveryConfig | None = None
    # Seconds without a step after which the process gives up; None: never.
    stall_seconds: float | None = None
    # Index of a batch -> JSON that makes `batches` quick to begin there; stored with a checkpoint.
    batch_hint: Callable[[int], Any] = lambda index: None
    # Called before the first step, so that compilation is timed by itself.
    compile: Callable[[], None] = lambda: None
    # Called once it is known where the run starts; not for one that is finished.
    on_start: Callable[[Start], None] = lambda start: None
    # (meta of the checkpoint, state), called when a run is restored.
    on_resume: Callable[[Mapping[str, Any], State], None] = lambda meta, state: None
    # Whether the state of a run that was finished before is restored: for what is made of it.
    restore_finished: bool = False


def batch_index(step: int, skipped: Ranges) -> int:
    """Which batch comes after so many steps, where some are skipped."""
    index = step
    for first, stop in skipped:
        if index >= first:
            index += stop - first
    return index
