"""Train the transformer on a prepared corpus; run the same command again to continue.

Leaves in the workdir: config.json, metrics.jsonl, tensorboard/, checkpoints/, samples/.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cm3leon_jax import config_file
from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches import BatchSource, iterate
from cm3leon_jax.data.corpus import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.model.sharding import make_mesh
from cm3leon_jax.progress import Progress
from cm3leon_jax.training.held_out import held_out_loss
from cm3leon_jax.training.metrics import MetricsLog, StepClock
from cm3leon_jax.training.samples import SamplePictures
from cm3leon_jax.training.step import Metrics, TrainState, TrainStep, on_mesh
from cm3leon_jax.vocabulary import Vocabulary

# What may differ between a run and its continuation; everything else would make it another run.
_MAY_CHANGE = ("train", "mesh", "sampling", "evaluate", "corpus.path", "vocabulary.path", "image_tokenizer")
_MAY_CHANGE_BUT = ("train.num_tokens", "train.seed")


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> None:
    """Trains from the latest checkpoint, or from scratch, to `config.num_steps`."""
    train = config.train
    is_first = jax.process_index() == 0
    vocabulary = Vocabulary.load(config.vocabulary.path)
    corpus = PreparedCorpus.open(config.corpus.path, vocabulary)
    mesh = make_mesh(config.mesh)
    source = _source(config, corpus, vocabulary, config.corpus.train_split)
    held_out_source = _source(config, corpus, vocabulary, config.corpus.held_out_split) if train.eval_every else None
    compiled = TrainStep(config, vocabulary, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", train.keep_checkpoints)

    _refuse_another_run(config, workdir, checkpoints, vocabulary)
    if is_first:
        config_file.save(config, workdir / "config.json")
    state, first_step = _restore_or_init(compiled, checkpoints)
    _announce(config, vocabulary, corpus, source, state, first_step, mesh)
    if first_step >= config.num_steps:
        print(f"finished: step {first_step} of {config.num_steps} is the last one")
        return

    log = MetricsLog(workdir, first_step) if is_first else None
    pictures = SamplePictures(config, workdir, vocabulary, compiled.graph)
    progress = Progress("train", config.num_steps, first_step, shown=is_first)
    clock = StepClock(first_step, config.batch.batch_size * config.batch.sequence_length)
    meta = {"vocabulary": vocabulary.fingerprint, "config": dataclasses.asdict(config)}
    batches = iterate(source, first_step, config.num_steps)
    try:
        pending: Metrics | None = None
        for step in range(first_step + 1, config.num_steps + 1):
            is_last = step == config.num_steps
            with clock.waiting_for_data():
                batch = on_mesh(next(batches), mesh)
            state, metrics = compiled.step(state, batch)
            # The step before is read while this one runs on the devices, which so are never idle.
            if pending is not None:
                _log_step(step - 1, pending, config, log, progress, clock)
            pending = metrics
            progress.advance()

            held_out: dict[str, float] = {}
            if held_out_source and _is_due(step, train.eval_every, is_last):
                with clock.paused():
                    held_out = held_out_loss(compiled, state["parameters"], held_out_source, train.eval_batches, mesh)
            save = is_last or _is_due(step, train.save_every, is_last)
            if held_out or save:
                # A state that diverged is not saved: the check comes first.
                _log_step(step, pending, config, log, progress, clock, held_out)
                pending = None
            if save:
                with clock.paused():
                    checkpoints.save(step, state, meta)
            if _is_due(step, train.sample_every, is_last):
                with clock.paused():
                    grid = pictures(step, state["parameters"])
                    if log and grid is not None:
                        log.write_picture(step, "samples", grid)
    finally:
        progress.close()
        checkpoints.close()
        if log:
            log.close()
    if is_first:
        print(f"finished: {config.num_steps} steps; the last checkpoint is in {workdir / 'checkpoints'}")


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
        progress.say(step, f"loss {values['loss']:.3f}, {values['tokens_per_second']:,.0f} tokens/s")
        if log:
            log.write(step, values)


def _is_due(step: int, every: int, is_last: bool) -> bool:
    """Every so many steps and at the last one; never where `every` is 0."""
    return every > 0 and (is_last or step % every == 0)


def _source(config: Config, corpus: PreparedCorpus, vocabulary: Vocabulary, split: str) -> BatchSource:
    return BatchSource(
        corpus,
        vocabulary,
        config.objective,
        config.batch,
        split,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _refuse_another_run(config: Config, workdir: Path, checkpoints: Checkpoints, vocabulary: Vocabulary) -> None:
    """A checkpoint goes on only under the config and the vocabulary that it was made with."""
    step = checkpoints.latest_step
    if step is None:
        return
    meta = checkpoints.meta(step)
    vocabulary.check_fingerprint(meta["vocabulary"], f"the checkpoint {workdir}/checkpoints/{step}")
    before, now = _flat(meta["config"]), _flat(dataclasses.asdict(config))
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and (name in _MAY_CHANGE_BUT or not any(name == p or name.startswith(f"{p}.") for p in _MAY_CHANGE))
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run with another config: {'; '.join(changed)}. "
            "Continue with the same values, or choose another --workdir"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _restore_or_init(compiled: TrainStep, checkpoints: Checkpoints) -> tuple[TrainState, int]:
    step = checkpoints.latest_step
    if step is None:
        return compiled.init(), 0
    return checkpoints.restore(step, compiled.abstract_state), step


def _announce(
    config: Config,
    vocabulary: Vocabulary,
    corpus: PreparedCorpus,
    source: BatchSource,
    state: TrainState,
    first_step: int,
    mesh: Mesh,
) -> None:
    if jax.process_index() != 0:
        return
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state["parameters"]))
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    documents = sum(s.num_documents for s in corpus.splits(config.corpus.train_split).values())
    print(f"model: {parameters:,} parameters, vocabulary {vocabulary.size:,} (ln V = {math.log(vocabulary.size):.3f})")
    print(f"data: {documents:,} documents in {config.corpus.path}")
    print(f"devices: {mesh.size} {jax.devices()[0].platform} ({axes}), {jax.process_count()} process(es)")
    origin = f"continued from the checkpoint of step {first_step}" if first_step else "from scratch"
    size = f"{config.batch.batch_size} x {config.batch.sequence_length} tokens"
    print(f"run: {config.num_steps:,} steps of {size}, {origin}")
    if source.num_too_long:
        print(f"note: {source.num_too_long:,} documents are longer than a sequence")
