"""Reads the newest checkpoint of a run that may be training at the same time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax

from cm3leon_jax.checkpoints import Checkpoints, DamagedCheckpoint
from cm3leon_jax.errors import RestartError, UserError

# How often to look for a newer step after the run deleted the one that was being read.
_MOST_LOOKS = 10

_Found = TypeVar("_Found")


def read_newest(workdir: Path, keep: int, read: Callable[[Checkpoints, int], _Found]) -> _Found:
    """Returns what `read` makes of a run's newest complete step.

    Training deletes its older steps. Where a file goes missing during `read` and there is a newer step, that is read.
    """
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"no checkpoints in {workdir}: run `cm3leon train` first, or give its --workdir")
    with Checkpoints(workdir / "checkpoints", keep, read_only=True) as checkpoints:
        for _ in range(_MOST_LOOKS):
            step = checkpoints.latest_step
            if step is None:
                raise UserError(f"no complete checkpoint in {workdir}/checkpoints: run `cm3leon train` first")
            try:
                return read(checkpoints, step)
            except (UserError, RestartError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:
                checkpoints.look_again()
                if checkpoints.latest_step == step:
                    if not isinstance(error, DamagedCheckpoint):
                        raise
                    before = "rename that folder, and the one before is used"
                    fix = before if len(checkpoints.steps) > 1 else "there is none before it: bring back a copy"
                    raise UserError(f"the newest checkpoint is damaged: {error}; {fix}") from None
                if jax.process_count() > 1:
                    # The others may wait for this one to read its part.
                    break
    raise RestartError(
        f"the run in {workdir} is training, and deleted its step {step:,} before it was read; run the same command "
        "again, or train with a longer config.train.save_every or more config.train.keep_checkpoints"
    )
