"""Reads the newest checkpoint of a run that may be training meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax

from cm3leon_jax.checkpoints import Checkpoints, DamagedCheckpoint
from cm3leon_jax.errors import RestartError, UserError

# How often a newest step is looked for that a run deletes while it is read.
_MOST_LOOKS = 10

_Found = TypeVar("_Found")


def read_newest(workdir: Path, keep: int, read: Callable[[Checkpoints, int], _Found]) -> _Found:
    """What `read` makes of the newest complete step of a run, which may be training meanwhile.

    Training deletes its older steps. Where a reader comes to miss files and there is a newer step, it reads that one.

    Args:
      workdir: of the run.
      keep: as in `Checkpoints`.
      read: called with the run's checkpoints and the step; once more if need be.

    Raises:
      UserError: if there is no step, or the newest one is damaged.
      RestartError: if every newest step was deleted before it was read.
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
