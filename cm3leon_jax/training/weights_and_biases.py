"""Logs to Weights & Biases."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write
from cm3leon_jax.storage import mirror
from cm3leon_jax.training.loggers import LoggedRun, tag


class WeightsAndBiases:
    """Continues one W&B run through all starts, which ignores steps that it has already; keeps files in WORKDIR/wandb.

    Project, entity and mode (such as offline) come from its WANDB_* variables.
    """

    def __init__(self, run: LoggedRun) -> None:
        """Raises a `UserError` if wandb is not installed."""
        try:
            import wandb
        except ImportError:
            raise UserError(
                "config.train.loggers names 'wandb', which is not installed: pip install 'cm3leon_jax[wandb]', or "
                "take it out"
            ) from None
        id_file = run.workdir / "wandb" / f"{run.name or 'train'}_id"
        if not id_file.exists() and not mirror.fetch(id_file):
            with atomic_write(id_file) as temporary:
                temporary.write_text(uuid.uuid4().hex)
        name = f"{run.workdir.name} {run.name}".strip()
        self._run = wandb.init(
            dir=run.workdir,
            id=id_file.read_text(),
            resume="allow",
            name=name,
            config=dict(run.config),
            settings=wandb.Settings(console="off"),
        )
        self._image = wandb.Image

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({tag(name): value for name, value in values.items()}, step=step)

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "R1 R2 C"]) -> None:
        self._run.log({name: self._image(pixels)}, step=step)

    def flush(self) -> None:
        """W&B sends from a process of its own."""

    def close(self) -> None:
        self._run.finish()
