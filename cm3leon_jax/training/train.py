"""Train the transformer on a prepared corpus; run the same command again to continue.

Leaves in the workdir: config.json, metrics.jsonl, tensorboard/, checkpoints/, samples/.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax

from cm3leon_jax import config_file
from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.row_fit import row_losses
from cm3leon_jax.data.batches.source import iterate
from cm3leon_jax.distributed import Watchdog, is_coordinator
from cm3leon_jax.errors import EXIT_RESTART, NotFinite, UserError
from cm3leon_jax.lock import lock
from cm3leon_jax.models.cpu import keep_freed_memory
from cm3leon_jax.models.flops import FLOP_RULE
from cm3leon_jax.models.transformer import parameter_count
from cm3leon_jax.preemption import PreemptionHandler
from cm3leon_jax.progress import Progress
from cm3leon_jax.training.goodput import RunClock
from cm3leon_jax.training.held_out import eval_loss
from cm3leon_jax.training.loss import absent_modalities, without_absent
from cm3leon_jax.training.metrics import MetricsLog, StepWork
from cm3leon_jax.training.profile import Profile
from cm3leon_jax.training.skipping import DivergedRange
from cm3leon_jax.training.start import Start, TrainContext, build_context, restore_or_init, rolled_back
from cm3leon_jax.training.step import Metrics, on_mesh


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `cm3leon train` takes beside the config."""
    parser.add_argument(
        "--profile", default="", metavar="FIRST:LAST", help="write a trace of these steps to WORKDIR/tensorboard"
    )


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    """The command `cm3leon train`."""
    clock = RunClock()
    keep_freed_memory()
    profile = Profile(arguments.profile, workdir / "tensorboard")
    if config.train.compilation_cache and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(Path(config.train.compilation_cache).resolve()))
    with (
        lock(workdir, "train"),
        Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints) as checkpoints,
    ):
        setup = build_context(config, workdir)
        start = restore_or_init(setup, checkpoints)
        if start.step >= config.num_steps:
            if is_coordinator():
                print(f"finished: step {start.step:,} of {config.num_steps:,} is the last one")
            return 0
        with clock.timed("compile"):
            setup.compiled.compile()
        if is_coordinator():
            config_file.save(config, workdir / "config.json")
            _announce(setup, start)
        is_restart = True
        while True:
            ended = _train(setup, start, checkpoints, clock, profile, is_restart)
            if isinstance(ended, int):
                return ended
            with clock.timed("startup"):
                start, is_restart = rolled_back(setup, start, checkpoints, ended), False


def _train(
    setup: TrainContext, start: Start, checkpoints: Checkpoints, clock: RunClock, profile: Profile, is_restart: bool
) -> int | DivergedRange:
    """Trains from a start to `config.num_steps`.

    Returns:
      the exit code; or the steps that had to be left out, if they were too many in a row.
    """
    config, compiled, mesh = setup.config, setup.compiled, setup.mesh
    train, state = config.train, start.state
    stopping = False
    source = setup.source(config.corpus.train_split, start)
    held_out_source = setup.source(config.corpus.held_out_split) if train.eval_every else None
    log = MetricsLog(setup.workdir, start.step, dataclasses.asdict(config)) if is_coordinator() else None
    progress = Progress("train", config.num_steps, start.step, shown=is_coordinator())
    clock.record_rollback(start.seconds, ((log and log.last_seconds) or start.seconds) if is_restart else None)
    batches = iterate(source, start.step, config.num_steps)
    stop, watch = PreemptionHandler(), Watchdog(config.distributed.stall_seconds)
    read = StepLogger(config, setup.work, log, progress, clock, watch)
    clock.ready(start.step)
    try:
        pending: Metrics | None = None
        for step in range(start.step + 1, config.num_steps + 1):
            is_last = step == config.num_steps
            with clock.timed("data_wait"):
                batch = on_mesh(next(batches), mesh)
            profile.before(step)
            state, metrics = compiled.step(state, batch)
            profile.after(step, metrics)
            # The step before is read while this one runs on the devices, which so are never idle.
            if pending is not None:
                read(step - 1, pending)
            pending = metrics
            progress.advance()

            held_out: dict[str, float] = {}
            if held_out_source and _is_due(step, train.eval_every, is_last):
                with clock.timed("evaluation"):
                    held_out = eval_loss(compiled, state["parameters"], held_out_source, train.eval_batches, mesh)
            stopping = stop.is_due() and not is_last
            save = is_last or stopping or _is_due(step, train.save_every, is_last)
            if held_out or save:
                read(step, pending, held_out)
                pending = None
                # What the run may go back to has no bad step before it.
                save = save and (read.num_in_a_row == 0 or is_last or stopping)
            if save:
                meta = setup.identity | start.record(source.block_at_step(step), clock.values())
                with clock.timed_save():
                    if log:
                        log.flush()
                    try:
                        checkpoints.save(step, state, meta)
                    except NotFinite as error:
                        raise _diverged(error, step - read.num_in_a_row, checkpoints) from None
            if setup.images and _is_due(step, train.sample_every, is_last):
                with clock.timed("evaluation"):
                    grid = setup.images(step, state["parameters"])
                    if log and grid is not None:
                        log.write_image(step, "samples", grid)
            if stopping:
                break
            if read.num_in_a_row >= config.recovery.max_skipped:
                return DivergedRange(read.last_step - read.num_in_a_row + 1, read.last_step)
        with clock.timed("save"):
            checkpoints.wait()
    finally:
        stop.close()
        watch.close()
        progress.close()
        profile.close()
        if log:
            log.close()
    if is_coordinator():
        print(clock.summary())
        if stopping:
            print(f"stopped and saved at step {step:,}; run the same command again to continue")
        else:
            print(f"finished: {config.num_steps:,} steps; the last checkpoint is in {setup.workdir / 'checkpoints'}")
    return EXIT_RESTART if stopping else 0


def _diverged(error: NotFinite, since: int, checkpoints: Checkpoints) -> UserError:
    """What to say of a state that cannot be saved: every step after the one that spoiled it was left out."""
    latest = checkpoints.latest_step
    good = "nothing was saved before it" if latest is None else f"the checkpoint of step {latest:,} is still good"
    return UserError(
        f"the parameters are not finite since step {since:,} ({error}); {good}. The gradients were finite: "
        "start anew in another --workdir, or from what is good with config.train.init_from, with a lower "
        "config.optimizer.peak_learning_rate or beta2, or a larger epsilon"
    )


@dataclass
class StepLogger:
    """Reads what a step measured, and logs it if it is due or comes with a held-out loss."""

    config: Config
    work: StepWork
    log: MetricsLog | None
    progress: Progress
    clock: RunClock
    watch: Watchdog
    last_step: int = 0
    # Steps up to the last one that were left out in a row.
    num_in_a_row: int = 0

    def __call__(self, step: int, metrics: Metrics, held_out: Mapping[str, float] | None = None) -> None:
        """Waits for a step."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.watch.heartbeat()
        self.last_step, self.num_in_a_row = step, int(values.pop("skipped_in_a_row"))
        if self.num_in_a_row:
            self.progress.note(
                f"step {step:,} is left out: loss {values['loss']:.3g}, gradient norm {values['grad_norm']:.3g}"
            )
        if held_out or step == 1 or _is_due(step, self.config.train.log_every, step == self.config.num_steps):
            values |= {**self.clock.lap(step, self.work), **(held_out or {})}
            values, absent = without_absent(values), absent_modalities(values)
            mfu = f", MFU {values['mfu']:.1%}" if "mfu" in values else ""
            rate, goodput = f"{values['tokens_per_second']:,.0f} tokens/s", f"goodput {values['goodput']:.0%}"
            self.progress.say(step, f"loss {values['loss']:.3f}, {rate}{mfu}, {goodput}{absent}")
            if self.log:
                self.log.write(step, values)


def _is_due(step: int, every: int, is_last: bool) -> bool:
    """Every so many steps and at the last one; never where `every` is 0."""
    return every > 0 and (is_last or step % every == 0)


def _announce(setup: TrainContext, start: Start) -> None:
    """Says what is about to run."""
    config, work = setup.config, setup.work
    parameters = parameter_count(
        config.model, setup.vocabulary.size, config.batch.sequence_length, config.image_tokenizer.image_length
    )
    axes = " x ".join(f"{axis} {size}" for axis, size in setup.mesh.shape.items())
    documents = sum(s.num_documents for s in setup.corpus.splits(config.corpus.train_split).values())
    size = setup.vocabulary.size
    print(f"model: {parameters:,} parameters, vocabulary {size:,} (ln V = {math.log(size):.3f})")
    print(f"data: {documents:,} documents in {config.corpus.path}")
    print(f"devices: {setup.mesh.size} {jax.devices()[0].platform} ({axes}), {jax.process_count()} process(es)")
    batch = f"{config.batch.batch_size} x {config.batch.sequence_length} tokens"
    print(f"run: {config.num_steps:,} steps of {batch}, {start.origin}")
    print(f"work: {work.flops_per_token:.3g} FLOPs a token ({FLOP_RULE})")
    if work.peak_flops:
        print(f"MFU: of {work.peak_flops / 1e12:,.0f} TFLOP/s a device, bfloat16")
    if config.retrieval.enabled:
        how_many = "0 to " * (config.retrieval.draw == "uniform") + str(config.retrieval.num_drawn)
        print(f"retrieval: {how_many} neighbor{'s' * (config.retrieval.num_drawn != 1)} in front of each document")
    if setup.images and setup.images.note:
        print(f"samples: {setup.images.note}")
    print(row_losses(setup.corpus, setup.vocabulary, config.batch, config.corpus.train_split))
