"""Where the measurements of a training go: a registry of loggers, named in `config.train.loggers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.progress import StepLog, read_step_log
from cm3leon_jax.registry import Registry

# A logger is made with one argument, the `LoggedRun`.
LOGGERS = Registry(
    "config.train.loggers",
    {
        "jsonl": "cm3leon_jax.training.loggers:JsonLines",
        "tensorboard": "cm3leon_jax.training.tensorboard:TensorBoard",
        "wandb": "cm3leon_jax.training.weights_and_biases:WeightsAndBiases",
    },
)

# Curves whose names begin with the same word and a "/" are shown side by side.
_GROUPS = {
    **{name: ("optimizer", name) for name in ("learning_rate", "grad_norm", "skipped_steps")},
    **{name: ("speed", name) for name in ("mfu", "step_seconds", "data_wait_seconds")},
    "goodput": ("goodput", "fraction"),
    "num_text": ("num_targets", "text"),
    "num_image": ("num_targets", "image"),
}


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is made for."""

    workdir: Path
    # Of the trained model: "" for the transformer, else such as "image_tokenizer"; it keeps their files apart.
    name: str
    # Steps up to this one were logged by earlier starts; what lies past it is logged again.
    first_step: int
    # All values of the run, as JSON.
    config: Mapping[str, Any]

    @property
    def metrics_file(self) -> Path:
        """The file of the "jsonl" logger."""
        return self.workdir / (f"{self.name}_metrics.jsonl" if self.name else "metrics.jsonl")


@runtime_checkable
class Logger(Protocol):
    """Records measurements; only the coordinator has one."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records the numbers of a step; some may not be finite."""

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "R1 R2 C"]) -> None:
        """Records an image, if the logger keeps images."""

    def flush(self) -> None:
        """Returns when what was recorded would survive a failing host: the step is about to be saved."""

    def close(self) -> None:
        """Flushes and ends."""


def last_seconds(run: LoggedRun) -> dict[str, float]:
    """The `seconds_*` of the newest logged line, if it lies past `first_step`: when an earlier start was last alive."""
    lines = read_step_log(run.metrics_file)
    last = lines[-1] if lines and lines[-1]["step"] > run.first_step else {}
    return {name: value for name, value in last.items() if name.startswith("seconds_") and value is not None}


def open_loggers(names: Sequence[str], run: LoggedRun) -> list[Logger]:
    """The named loggers; refuses a name that no module registers, and what is not installed."""
    return [LOGGERS.load(name)(run) for name in names]


class JsonLines(StepLog):
    """Appends to metrics.jsonl, one line per logged step, without gaps or repetitions through all restarts."""

    def __init__(self, run: LoggedRun) -> None:
        run.workdir.mkdir(parents=True, exist_ok=True)
        super().__init__(run.metrics_file, run.first_step)

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "R1 R2 C"]) -> None:
        """Keeps none."""


def tag(name: str) -> str:
    """The name of a curve, with its group; in metrics.jsonl it has none."""
    if name.startswith("eval_"):
        return "eval_" + tag(name.removeprefix("eval_"))
    if name.startswith("seconds_"):
        return f"goodput/{name}"
    if "_per_second" in name:
        return f"speed/{name}"
    first, _, rest = name.partition("_")
    return "/".join(_GROUPS.get(name, (first, rest or "all")))
