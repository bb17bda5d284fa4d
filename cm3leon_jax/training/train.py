"""Train the transformer on a prepared corpus; run the same command again to continue.

Leaves in the workdir: config.json, metrics.jsonl, tensorboard/, checkpoints/, samples/.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import signal
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cm3leon_jax import accelerators, config_file
from cm3leon_jax.checkpoints import Checkpoints, refuse_changes
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches import BatchSource, Retrieval, iterate, open_retrieval
from cm3leon_jax.data.corpus import PreparedCorpus
from cm3leon_jax.data.neighbours import LIST_FIELDS
from cm3leon_jax.errors import RESTART, UserError
from cm3leon_jax.model.flops import FLOP_RULE, flops_per_token
from cm3leon_jax.model.sharding import make_mesh, refuse_uneven_batch
from cm3leon_jax.model.transformer import parameter_count
from cm3leon_jax.progress import Progress
from cm3leon_jax.training.cpu_memory import keep_freed_memory
from cm3leon_jax.training.held_out import held_out_loss
from cm3leon_jax.training.metrics import MetricsLog, StepClock, StepWork
from cm3leon_jax.training.profile import Profile
from cm3leon_jax.training.samples import SamplePictures
from cm3leon_jax.training.step import Metrics, TrainStep, on_mesh
from cm3leon_jax.vocabulary import Vocabulary

# What may differ between a run and its continuation; everything else would make it another run.
_MAY_CHANGE = (
    *(
        "config.mesh",
        "config.distributed",
        "config.sampling",
        "config.evaluate",
        "config.corpus",
        "config.image_tokenizer_training",
    ),
    # Neighbours have a fingerprint of their own.
    *("config.bi_encoder", "config.bi_encoder_training", *(f"config.retrieval.{name}" for name in LIST_FIELDS)),
    *("config.vocabulary.path", "config.vocabulary.num_documents", "config.image_tokenizer.path"),
    *(f"config.train.{name}" for name in ("log_every", "save_every", "keep_checkpoints", "eval_every")),
    *("config.train.eval_batches", "config.train.sample_every", "config.train.compilation_cache", "first_window"),
    # How a step is computed, not what.
    *("config.model.attention", "config.model.remat", "config.model.scan_layers"),
    *("config.train.num_microbatches", "config.train.loss_chunks"),
)
# What else may differ between an import and the run that starts from it: all that shapes no parameter.
_FREE_AFTER_IMPORT = (
    *("config.batch.batch_size", "config.batch.packing", "config.batch.seed", "config.objective", "config.optimizer"),
    *("config.retrieval", "neighbours"),
    *("config.train", "config.model.compute_dtype", "config.model.init_std", "config.model.position_init_std"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `cm3leon train` takes beside the config."""
    parser.add_argument(
        "--profile", default="", metavar="FIRST:LAST", help="write a trace of these steps to WORKDIR/tensorboard"
    )


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    """The command `cm3leon train`."""
    keep_freed_memory()
    profile = Profile(arguments.profile, workdir / "tensorboard")
    if config.train.compilation_cache and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(Path(config.train.compilation_cache).resolve()))
    with Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints) as checkpoints:
        return train_to_the_end(config, workdir, checkpoints, profile)


def train_to_the_end(config: Config, workdir: Path, checkpoints: Checkpoints, profile: Profile) -> int:
    """Trains from the latest checkpoint, or from scratch, to `config.num_steps`; returns the exit code."""
    train = config.train
    is_first = jax.process_index() == 0
    vocabulary = Vocabulary.load(config.vocabulary.path)
    corpus = PreparedCorpus.open(config.corpus.path, vocabulary)
    retrieval = open_retrieval(corpus, config.retrieval, config.corpus.train_split)
    mesh = make_mesh(config.mesh)
    refuse_uneven_batch(config.batch.batch_size, mesh, train.num_microbatches)
    compiled = TrainStep(config, vocabulary, mesh)
    latest = checkpoints.latest_step
    first_step = latest or 0
    meta: dict[str, Any] = {
        "vocabulary": vocabulary.fingerprint,
        "corpus": corpus.identity,
        "neighbours": retrieval.lists.fingerprint if retrieval else "",
        "config": dataclasses.asdict(config),
    }
    stored = {} if latest is None else checkpoints.meta(latest)
    is_imported = bool(stored.get("imported"))
    if is_imported and stored["corpus"]["image_tokenizer"] is None:
        # Imported before there was one: the corpus says which one it is.
        del stored["corpus"]
    refuse_changes(stored, meta, _MAY_CHANGE + _FREE_AFTER_IMPORT * is_imported, f"{workdir} holds a run")
    meta["from_import"] = is_imported or stored.get("from_import", False)
    documents = partial(_source, config, corpus, vocabulary, retrieval)
    source = documents(config.corpus.train_split, stored.get("first_window", (0, 0)))
    held_out_source = documents(config.corpus.held_out_split) if train.eval_every else None
    pictures = SamplePictures(config, workdir, vocabulary, mesh) if train.sample_every else None
    if is_first:
        config_file.save(config, workdir / "config.json")
    origin = "from imported parameters" if is_imported else "from scratch"
    if first_step:
        origin = f"continued from the checkpoint of step {first_step}"
    work = _step_work(config, vocabulary, mesh)
    _announce(config, vocabulary, corpus, source, origin, mesh, work)
    if first_step >= config.num_steps:
        print(f"finished: step {first_step} of {config.num_steps} is the last one")
        return 0
    # Restored without ever being initialised: two states do not fit where one does.
    state = checkpoints.restore(first_step, compiled.abstract_state) if first_step else compiled.init()
    if is_imported:
        # The drawn parameters go before the imported ones come, for the same reason.
        del state["parameters"]
        state["parameters"] = checkpoints.restore_parameters(0, compiled.abstract_state["parameters"])

    log = MetricsLog(workdir, first_step) if is_first else None
    progress = Progress("train", config.num_steps, first_step, shown=is_first)
    clock = StepClock(first_step, work)
    batches = iterate(source, first_step, config.num_steps)
    stop = StopSignal()
    try:
        pending: Metrics | None = None
        for step in range(first_step + 1, config.num_steps + 1):
            is_last = step == config.num_steps
            with clock.waiting_for_data():
                batch = on_mesh(next(batches), mesh)
            profile.before(step)
            state, metrics = compiled.step(state, batch)
            profile.after(step, metrics)
            # The step before is read while this one runs on the devices, which so are never idle.
            if pending is not None:
                _log_step(step - 1, pending, config, log, progress, clock)
            pending = metrics
            progress.advance()

            held_out: dict[str, float] = {}
            if held_out_source and _is_due(step, train.eval_every, is_last):
                with clock.paused():
                    held_out = held_out_loss(compiled, state["parameters"], held_out_source, train.eval_batches, mesh)
            # Read once: a signal that comes after the save is for the next step.
            stopping = stop.was_sent and not is_last
            save = is_last or stopping or _is_due(step, train.save_every, is_last)
            if held_out or save:
                # A state that diverged is not saved: the check comes first.
                _log_step(step, pending, config, log, progress, clock, held_out)
                pending = None
            if save:
                with clock.paused():
                    checkpoints.save(step, state, meta | {"first_window": source.window_of(step)})
            if pictures and _is_due(step, train.sample_every, is_last):
                with clock.paused():
                    grid = pictures(step, state["parameters"])
                    if log and grid is not None:
                        log.write_picture(step, "samples", grid)
            if stopping:
                print(f"stopped and saved at step {step}; run the same command again to continue")
                return RESTART
    finally:
        stop.close()
        progress.close()
        profile.close()
        checkpoints.wait()
        if log:
            log.close()
    if is_first:
        print(f"finished: {config.num_steps} steps; the last checkpoint is in {workdir / 'checkpoints'}")
    return 0


class StopSignal:
    """Notes SIGTERM and Ctrl-C, so that the loop can save first; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.was_sent = False
        # Only the main thread may set handlers.
        is_main = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGTERM, signal.SIGINT) if is_main else ()
        self._before = {number: signal.signal(number, self._note) for number in signals}

    def _note(self, number: int, frame: Any) -> None:
        self.was_sent = True
        self.close()

    def close(self) -> None:
        """Puts the handlers of before back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _log_step(
    step: int,
    metrics: Metrics,
    config: Config,
    log: MetricsLog | None,
    progress: Progress,
    clock: StepClock,
    held_out: Mapping[str, float] | None = None,
) -> None:
    """Waits for a step, stops the run if it diverged, and logs it if it is due or comes with a held-out loss."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
        raise UserError(
            f"the run diverged: loss {values['loss']}, gradient norm {values['grad_norm']} at step {step}; lower "
            "config.optimizer.peak_learning_rate and start again, or from a checkpoint before the loss rose"
        )
    if held_out or step == 1 or _is_due(step, config.train.log_every, step == config.num_steps):
        values |= {**clock.lap(step), **(held_out or {})}
        mfu = f", MFU {values['mfu']:.1%}" if "mfu" in values else ""
        progress.say(step, f"loss {values['loss']:.3f}, {values['tokens_per_second']:,.0f} tokens/s{mfu}")
        if log:
            log.write(step, values)


def _is_due(step: int, every: int, is_last: bool) -> bool:
    """Every so many steps and at the last one; never where `every` is 0."""
    return every > 0 and (is_last or step % every == 0)


def _source(
    config: Config,
    corpus: PreparedCorpus,
    vocabulary: Vocabulary,
    retrieval: Retrieval | None,
    split: str,
    first_window: Sequence[int] = (0, 0),
) -> BatchSource:
    return BatchSource(
        corpus,
        vocabulary,
        config.objective,
        config.batch,
        split,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        first_window=(first_window[0], first_window[1]),
        retrieval=retrieval,
    )


def _step_work(config: Config, vocabulary: Vocabulary, mesh: Mesh) -> StepWork:
    chip = accelerators.by_device_kind(mesh.devices.flat[0].device_kind)
    return StepWork(
        num_tokens=config.batch.batch_size * config.batch.sequence_length,
        flops_per_token=flops_per_token(config.model, vocabulary.size, config.batch.sequence_length),
        num_devices=mesh.size,
        peak_flops=chip.bfloat16_flops if chip else 0.0,
    )


def _announce(
    config: Config,
    vocabulary: Vocabulary,
    corpus: PreparedCorpus,
    source: BatchSource,
    origin: str,
    mesh: Mesh,
    work: StepWork,
) -> None:
    if jax.process_index() != 0:
        return
    parameters = parameter_count(config.model, vocabulary.size, config.batch.sequence_length)
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    documents = sum(s.num_documents for s in corpus.splits(config.corpus.train_split).values())
    print(f"model: {parameters:,} parameters, vocabulary {vocabulary.size:,} (ln V = {math.log(vocabulary.size):.3f})")
    print(f"data: {documents:,} documents in {config.corpus.path}")
    print(f"devices: {mesh.size} {jax.devices()[0].platform} ({axes}), {jax.process_count()} process(es)")
    size = f"{config.batch.batch_size} x {config.batch.sequence_length} tokens"
    print(f"run: {config.num_steps:,} steps of {size}, {origin}")
    print(f"work: {work.flops_per_token:.3g} FLOPs a token ({FLOP_RULE})")
    if work.peak_flops:
        print(f"MFU: of {work.peak_flops / 1e12:,.0f} TFLOP/s a device, bfloat16")
    if config.retrieval.enabled:
        how_many = "0 to " * (config.retrieval.draw == "uniform") + str(config.retrieval.num_drawn)
        print(f"retrieval: {how_many} neighbour{'s' * (config.retrieval.num_drawn != 1)} in front of each document")
    if source.num_too_long:
        print(f"note: {source.num_too_long:,} documents are longer than a sequence and lose their last segments")
