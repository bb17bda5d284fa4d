"""The training loop, the same for every model: it runs any `(state, batch) -> (state, metrics)`, on many processes."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.distributed import Watchdog, is_coordinator
from cm3leon_jax.errors import EXIT_RESTART, NotFinite, UserError
from cm3leon_jax.preemption import PreemptionHandler
from cm3leon_jax.progress import Progress
from cm3leon_jax.training.goodput import RunClock
from cm3leon_jax.training.loggers import LOGGERS, LoggedRun, Logger, last_seconds, open_loggers
from cm3leon_jax.training.profile import Profile
from cm3leon_jax.training.resume import DivergedSteps, batches_left, restore_or_init, roll_back
from cm3leon_jax.training.run import Metrics, Start, State, TrainingRun, batch_index

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended: finished, or stopped by a signal after saving."""

    # That after the last step; empty for a run that was finished before, unless it is restored then.
    state: State
    is_stopped: bool = False

    @property
    def exit_code(self) -> int:
        return EXIT_RESTART if self.is_stopped else 0


def train(run: TrainingRun, clock: RunClock | None = None, profile: Profile | None = None) -> TrainingResult:
    """Trains to the last step, from the newest checkpoint if there is one; all processes of the run call this.

    Raises a `UserError` if the checkpoints belong to another run, or the training diverges, and a `RestartError` if
    another start may do better.
    """
    clock, profile = clock or RunClock(), profile or Profile()
    # A wrong name ends every process now, and not only the coordinator later.
    for name in run.loggers:
        LOGGERS.load(name)
    with Checkpoints(run.checkpoints, run.keep_checkpoints) as checkpoints:
        start = restore_or_init(run, checkpoints)
        if start.step >= run.num_steps:
            log.info(f"finished: step {start.step:,} of {run.num_steps:,} is the last one")
            return TrainingResult(start.state)
        with clock.timed("compile"):
            run.compile()
        run.on_start(start)
        clock.continue_from(start.seconds, last_seconds(_logged_run(run, start)) if is_coordinator() else {})
        with PreemptionHandler() as preemption, contextlib.closing(Watchdog(run.stall_seconds)) as watchdog:
            while True:
                end = _train_from(start, run, checkpoints, clock, profile, preemption, watchdog)
                if isinstance(end, TrainingResult):
                    return end
                with clock.timed("startup"):
                    start = roll_back(run, start, checkpoints, end)
                clock.roll_back(start.seconds)


def _train_from(
    start: Start,
    run: TrainingRun,
    checkpoints: Checkpoints,
    clock: RunClock,
    profile: Profile,
    preemption: PreemptionHandler,
    watchdog: Watchdog,
) -> TrainingResult | DivergedSteps:
    """Trains from one start to the last step, or until too many steps in a row were skipped."""
    loggers = open_loggers(run.loggers, _logged_run(run, start)) if is_coordinator() else []
    progress = Progress(run.name, run.num_steps, start.step, shown=is_coordinator())
    monitor = StepMonitor(run, loggers, progress, clock, watchdog)
    batches = batches_left(run, start)
    state, is_stopping = start.state, False
    clock.start_steps(start.step)
    try:
        for step in range(start.step + 1, run.num_steps + 1):
            is_last = step == run.num_steps
            with clock.timed("data_wait"):
                batch = next(batches)
            profile.before(step)
            state, metrics = run.step(state, batch)
            profile.after(step, metrics)
            monitor.add(step, metrics)
            progress.advance()

            measured: dict[str, float] = {}
            for evaluation in run.evaluations:
                if is_due(step, evaluation.every, is_last):
                    with clock.timed("evaluation"):
                        measured |= evaluation.measure(step, state)
            is_stopping = preemption.is_due() and not is_last
            is_saving = is_stopping or is_due(step, run.save_every, is_last)
            if measured or is_saving:
                monitor.read(measured)
            # A regular save comes after an applied step, so that a rollback finds a state before the skipped ones.
            if is_saving and (monitor.skipped_in_a_row == 0 or is_last or is_stopping):
                with clock.timed_save():
                    for logger in loggers:
                        logger.flush()
                    hint = run.batch_hint(batch_index(step, start.skipped))
                    meta = {**run.identity, **start.meta(hint, clock.values())}
                    try:
                        checkpoints.save(step, state, meta)
                    except NotFinite as error:
                        raise _diverged(run, error, step - monitor.skipped_in_a_row, checkpoints) from None
            for images in run.images:
                if is_due(step, images.every, is_last):
                    with clock.timed("evaluation"):
                        image = images.make(step, state)
                    if image is not None:
                        for logger in loggers:
                            logger.write_image(step, images.name, image)
            if is_stopping:
                break
            if run.recovery and monitor.skipped_in_a_row >= run.recovery.max_skipped:
                return DivergedSteps(monitor.last_step - monitor.skipped_in_a_row + 1, monitor.last_step)
        with clock.timed("save"):
            checkpoints.wait()
    finally:
        progress.close()
        profile.close()
        for logger in loggers:
            logger.close()
    log.info(clock.summary())
    if is_stopping:
        log.info(f"stopped and saved at step {step:,}; run the same command again to continue")
    else:
        log.info(f"finished: {run.num_steps:,} steps; the last checkpoint is in {run.checkpoints}")
    return TrainingResult(state, is_stopping)


def is_due(step: int, every: int, is_last: bool) -> bool:
    """Every so many steps and at the last one; never where `every` is 0."""
    return every > 0 and (is_last or step % every == 0)


class StepMonitor:
    """Reads the metrics of steps, logs those that are due, and knows how many steps in a row were skipped.

    A step is read while the next one runs, so that the devices never wait.
    """

    def __init__(
        self, run: TrainingRun, loggers: Sequence[Logger], progress: Progress, clock: RunClock, watchdog: Watchdog
    ) -> None:
        self._run, self._loggers, self._progress = run, loggers, progress
        self._clock, self._watchdog = clock, watchdog
        self._pending: tuple[int, Metrics] | None = None
        # The last step that was read, and how many up to it were skipped.
        self.last_step = self.skipped_in_a_row = 0

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that may still run, and reads those of the step before.

        Raises a `UserError` if the run has no recovery, and a loss or gradient norm is not finite.
        """
        self.read()
        self._pending = step, metrics

    def read(self, measured: Mapping[str, float] | None = None) -> None:
        """Waits for the pending step; `measured` joins its line, which is then logged in any case."""
        if self._pending is None:
            return
        (step, metrics), self._pending, run = self._pending, None, self._run
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._watchdog.heartbeat()
        self.last_step, self.skipped_in_a_row = step, int(values.pop("skipped_in_a_row", 0))
        if run.recovery is None:
            for name in ("loss", "grad_norm"):
                if not math.isfinite(values.get(name, 0.0)):
                    what = name.replace("grad_norm", "gradient norm")
                    raise UserError(f"the {run.name}'s {what} is {values[name]} since step {step:,}: {run.fix}")
        if self.skipped_in_a_row:
            norm = values["grad_norm"]
            log.info(f"step {step:,} is skipped: loss {values['loss']:.3g}, gradient norm {norm:.3g}")
        if measured or step == 1 or is_due(step, run.log_every, step == run.num_steps):
            values |= {**self._clock.lap(step, run.rates), **(measured or {})}
            values = dict(run.select(values))
            self._progress.say(step, f"{run.describe(values)}, goodput {values['goodput']:.0%}")
            for logger in self._loggers:
                logger.write(step, values)


def _logged_run(run: TrainingRun, start: Start) -> LoggedRun:
    return LoggedRun(run.workdir, run.log_name, start.step, run.config)


def _diverged(run: TrainingRun, error: NotFinite, since: int, checkpoints: Checkpoints) -> UserError:
    """The message for a state that cannot be saved; every step after the one that spoiled it was skipped."""
    latest = checkpoints.latest_step
    good = "nothing was saved before it" if latest is None else f"the checkpoint of step {latest:,} is still good"
    return UserError(f"the {run.name}'s parameters are not finite since step {since:,} ({error}); {good}: {run.fix}")
