"""Where the measurements of a training go: a registry of loggers, named in `config.train.loggers`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.errors import UserError
from cm3leon_jax.images import encode_png
from cm3leon_jax.progress import StepLog, read_step_log
from cm3leon_jax.registry import Registry
from cm3leon_jax.training.event_file import EventFile

# A logger is made with one argument, the `LoggedRun`.
LOGGERS = Registry(
    "config.train.loggers",
    {
        "jsonl": "cm3leon_jax.training.loggers:JsonLines",
        "tensorboard": "cm3leon_jax.training.loggers:TensorBoard",
        "wandb": "cm3leon_jax.training.loggers:WeightsAndBiases",
    },
)

# Longest time for which curves are kept back from TensorBoard.
_FLUSH_SECONDS = 30.0

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
    """The named loggers.

    Raises:
      UserError: if no module registers one of the names, or one needs what is not installed.
    """
    return [LOGGERS.load(name)(run) for name in names]


class JsonLines:
    """Appends to metrics.jsonl, one line per logged step, without gaps or repetitions through all restarts."""

    def __init__(self, run: LoggedRun) -> None:
        run.workdir.mkdir(parents=True, exist_ok=True)
        self._lines = StepLog(run.metrics_file, run.first_step)
        self.write, self.flush, self.close = self._lines.write, self._lines.flush, self._lines.close

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "R1 R2 C"]) -> None:
        """Keeps none."""


class TensorBoard:
    """Writes WORKDIR/tensorboard: grouped curves, images, and the config of each start as text."""

    def __init__(self, run: LoggedRun) -> None:
        self._file = EventFile(run.workdir / "tensorboard" / run.name, run.first_step)
        self._flushed = time.monotonic()
        text = json.dumps(run.config, indent=2, ensure_ascii=False)
        self._file.write_text(run.first_step, "config", f"```json\n{text}\n```")
        self.flush, self.close = self._file.flush, self._file.close

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point per curve."""
        self._file.write_scalars(step, {tag(name): value for name, value in values.items()})
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "R1 R2 C"]) -> None:
        """Writes one image, at once."""
        self._file.write_image(step, name, encode_png(pixels), pixels.shape)
        self._file.flush()


class WeightsAndBiases:
    """Logs to Weights & Biases: project, entity and mode come from its WANDB_* variables; files go to WORKDIR/wandb.

    Every start of a run continues the same W&B run; steps that are repeated after a failure are sent once.
    """

    def __init__(self, run: LoggedRun) -> None:
        """
        Raises:
          UserError: if wandb is not installed.
        """
        try:
            import wandb
        except ImportError:
            raise UserError(
                "config.train.loggers names 'wandb', which is not installed: pip install 'cm3leon_jax[wandb]', or "
                "take it out"
            ) from None
        folder = run.workdir / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        id_file = folder / f"{run.name or 'train'}_run_id"
        if not id_file.exists():
            id_file.write_text(wandb.util.generate_id())
        name = f"{run.workdir.name}/{run.name}" if run.name else run.workdir.name
        run_id = id_file.read_text()
        self._run = wandb.init(dir=run.workdir, id=run_id, resume="allow", name=name, config=dict(run.config))
        self._image, self._last_step = wandb.Image, int(self._run.summary.get("last_step", 0))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point per curve."""
        self._run.log({tag(name): value for name, value in values.items()}, step=step)

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "R1 R2 C"]) -> None:
        """One image."""
        self._run.log({name: self._image(pixels)}, step=step)

    def flush(self) -> None:
        """W&B sends from a process of its own."""

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


def tag(name: str) -> str:
    """The name of a curve, with its group; in metrics.jsonl it has none."""
    if name.startswith("eval_") and name.removeprefix("eval_") in _GROUPS:
        return "eval_" + tag(name.removeprefix("eval_"))
    if name.startswith("eval_"):
        first, _, rest = name.removeprefix("eval_").partition("_")
        return f"eval_{first}/{rest or 'all'}"
    if name.startswith("seconds_"):
        return f"goodput/{name}"
    if "_per_second" in name:
        return f"speed/{name}"
    first, _, rest = name.partition("_")
    return "/".join(_GROUPS.get(name, (first, rest or "all")))
