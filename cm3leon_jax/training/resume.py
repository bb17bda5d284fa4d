"""Where a training starts: at its newest undamaged checkpoint, from scratch, or before steps that diverged."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cm3leon_jax.checkpoints import Checkpoints, DamagedCheckpoint, check_unchanged
from cm3leon_jax.errors import RestartError, UserError
from cm3leon_jax.training.config import FREE_VALUES
from cm3leon_jax.training.run import Batch, Start, TrainingRun, batch_index

log = logging.getLogger(__name__)


class DivergedSteps(NamedTuple):
    """The first and the last of too many steps that were skipped in a row."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"steps {self.first:,} to {self.last:,} were skipped"


def batches_left(run: TrainingRun, start: Start) -> Iterator[Batch]:
    """The batches of all steps after a start."""
    step = start.step
    while step < run.num_steps:
        first = batch_index(step, start.skipped)
        stop = min([first + run.num_steps - step, *(skip for skip, _ in start.skipped if skip > first)])
        yield from run.batches(first, stop, start.batch_hint)
        step += stop - first


def is_trained(path: Path, stored: Mapping[str, Any] | None, record: Mapping[str, Any], part: str) -> bool:
    """Whether the model in a folder was trained to its last step by the values of `record`.

    `stored` is what its config.json says of its training; `part` of the config describes it, such as "image_tokenizer".
    Raises a `UserError` if it was made otherwise.
    """
    if not stored:
        raise UserError(
            f"{path} holds an {part.replace('_', ' ')} that was not trained by this command: use it as it is, or set "
            f"another config.{part}.path"
        )
    check_unchanged(stored, record, FREE_VALUES, f"config.{part}.path: {path} was")
    return stored.get("values", {}).get("num_steps") == record["values"].get("num_steps")


def restore_or_init(run: TrainingRun, checkpoints: Checkpoints) -> Start:
    """The newest checkpoint that can be read, or a fresh start; damaged ones are renamed.

    A checkpoint of imported parameters is no step of a run: `run.init` reads it.

    Raises a `UserError` if all checkpoints are damaged, or they belong to another run, and a `RestartError` if the
    newest one is damaged, and there are other processes.
    """
    steps = checkpoints.steps
    for step in reversed(steps):
        try:
            meta = checkpoints.meta(step)
            if meta.get("imported"):
                return run.init(checkpoints)
            return _restored(run, checkpoints, step, meta)
        except DamagedCheckpoint as damage:
            if step == steps[0]:
                raise UserError(
                    f"no checkpoint is left to continue from: {damage}; bring back one from a copy, or train again "
                    "from the beginning in another folder"
                ) from None
            log.warning(f"damaged: {damage}; now called {checkpoints.quarantine(step).name}. Trying the one before")
            if jax.process_count() > 1:
                # The others wait for this one to read its part.
                raise RestartError(f"{damage}; the checkpoint before is used at the next start") from None
    return run.init(checkpoints)


def _restored(run: TrainingRun, checkpoints: Checkpoints, step: int, meta: dict[str, Any]) -> Start:
    for change in check_unchanged(meta, run.identity, run.may_change, f"{run.checkpoints} holds a run"):
        log.info(f"changed: {change}")
    if step > run.num_steps:
        raise UserError(
            f"{run.length_field} ends the run at step {run.num_steps:,}, but it is at step {step:,} already: give at "
            f"least {step * run.length_per_step:,}, or another folder than {run.checkpoints.parent}"
        )
    # Restored without ever being initialized: two states may not fit where one does.
    is_needed = step < run.num_steps or run.restore_finished
    state = checkpoints.restore(step, run.abstract_state) if is_needed else {}
    if is_needed:
        run.on_resume(meta, state)
    return Start(
        step,
        state,
        f"continued from the checkpoint of step {step:,}",
        meta["origin"],
        tuple((first, stop) for first, stop in meta["skipped_batches"]),
        meta["num_rollbacks"],
        meta["batch_hint"],
        meta["seconds"],
    )


def roll_back(run: TrainingRun, start: Start, checkpoints: Checkpoints, diverged: DivergedSteps) -> Start:
    """The last checkpoint before steps that diverged, whose batches are skipped from now on.

    Raises a `UserError` if the run was rolled back as often as it may be.
    """
    assert run.recovery is not None
    most = run.recovery.max_rollbacks
    if start.num_rollbacks >= most:
        raise UserError(
            f"the run diverged: {diverged}, after {start.num_rollbacks} rollbacks; if it only met bad data, raise "
            f"config.recovery.max_rollbacks or spike_factor and run again; if not, {run.fix}"
        )
    checkpoints.drop_after(diverged.first - 1)
    bad = (batch_index(diverged.first - 1, start.skipped), batch_index(diverged.last - 1, start.skipped) + 1)
    back = restore_or_init(run, checkpoints)
    log.info(
        f"rolling back: {diverged} (a loss or gradient norm that is not finite, or a spike); {back.description}, "
        f"without batches {bad[0]:,} to {bad[1] - 1:,} ({start.num_rollbacks + 1} of {most})"
    )
    kept = [(first, stop) for first, stop in start.skipped if stop <= bad[0] or first >= bad[1]]
    return dataclasses.replace(back, skipped=tuple(sorted([*kept, bad])), num_rollbacks=start.num_rollbacks + 1)
