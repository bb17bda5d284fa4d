"""Train the transformer on a prepared corpus; run the same command again to continue.

Leaves in the workdir: config.json, metrics.jsonl, tensorboard/, checkpoints/, samples/.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

import jax

from cm3leon_jax import config_file
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.row_fit import row_losses
from cm3leon_jax.distributed import is_coordinator
from cm3leon_jax.evaluation.periodic import PeriodicMetrics
from cm3leon_jax.generation.samples import SampleImages
from cm3leon_jax.lock import lock
from cm3leon_jax.models.cpu import keep_freed_memory
from cm3leon_jax.models.flops import FLOP_RULE
from cm3leon_jax.models.transformer import parameter_count
from cm3leon_jax.training import trainer
from cm3leon_jax.training.goodput import RunClock
from cm3leon_jax.training.profile import Profile
from cm3leon_jax.training.run import Evaluation, Images, Start
from cm3leon_jax.training.transformer import TransformerTraining

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", default="", metavar="FIRST:LAST", help="write a trace of these steps to WORKDIR/tensorboard"
    )


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    clock = RunClock()
    keep_freed_memory()
    profile = Profile(arguments.profile, workdir / "tensorboard")
    if config.train.compilation_cache and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(Path(config.train.compilation_cache).resolve()))
    with lock(workdir, "train", subfolders=False):
        training = TransformerTraining.open(config, workdir)
        samples = _samples(training)

        def on_start(start: Start) -> None:
            if is_coordinator():
                config_file.save(config, workdir / "config.json")
                _announce(training, start, samples.note if samples else "")

        every = config.train.sample_every
        images = [Images(every, "samples", lambda step, state: samples(step, state["parameters"]))] if samples else []
        return trainer.train(training.run(images, on_start, _evaluations(training)), clock, profile).exit_code


def _samples(training: TransformerTraining) -> SampleImages | None:
    config = training.config
    if not config.train.sample_every:
        return None
    return SampleImages(config, training.workdir, training.vocabulary, training.corpus, training.mesh)


def _evaluations(training: TransformerTraining) -> list[Evaluation]:
    config, every = training.config, training.config.train.metrics_every
    if not every:
        return []
    metrics = PeriodicMetrics(config, training.vocabulary, training.corpus, training.mesh)
    return [Evaluation(every, lambda step, state: metrics(step, state["parameters"]))]


def _announce(training: TransformerTraining, start: Start, samples: str) -> None:
    config, mesh, work, size = training.config, training.mesh, training.work, training.vocabulary.size
    image_length = config.image_tokenizer.image_length
    parameters = parameter_count(config.model, size, config.batch.sequence_length, image_length)
    axes = " x ".join(f"{axis} {ways}" for axis, ways in mesh.shape.items())
    splits = training.corpus.splits(config.corpus.train_split).values()
    documents, in_epoch = (sum(getattr(split, name) for split in splits) for name in ("num_documents", "num_in_epoch"))
    taken = f", {in_epoch:,} of which an epoch takes" if in_epoch < documents else ""
    batch = f"{config.batch.batch_size} x {config.batch.sequence_length} tokens"
    log.info(f"model: {parameters:,} parameters, vocabulary {size:,} (ln V = {math.log(size):.3f})")
    log.info(f"data: {documents:,} documents in {config.corpus.path}{taken}")
    log.info(f"devices: {mesh.size} {jax.devices()[0].platform} ({axes}), {jax.process_count()} process(es)")
    log.info(f"run: {config.num_steps:,} steps of {batch}, {start.description}")
    log.info(f"work: {work.flops_per_token:.3g} FLOPs per token ({FLOP_RULE})")
    if work.peak_flops:
        log.info(f"MFU: of {work.peak_flops / 1e12:,.0f} TFLOP/s per device, bfloat16")
    if config.retrieval.enabled:
        how_many = "0 to " * (config.retrieval.sampling == "uniform") + str(config.retrieval.num_retrieved)
        log.info(f"retrieval: {how_many} neighbor{'s' * (config.retrieval.num_retrieved != 1)} before each document")
    if samples:
        log.info(f"samples: {samples}")
    log.info(row_losses(training.corpus, training.vocabulary, config.batch, config.corpus.train_split))
