"""Trains the image tokenizer (a VQGAN) on the images of the mixture; run it again to continue.

Reads the values under `image_tokenizer` and `image_tokenizer_training` of the config. Uses all devices of the host.

  IMAGE_TOKENIZER/config.json, model.safetensors    the finished tokenizer, for `prepare` and `generate`
  IMAGE_TOKENIZER/checkpoints                       the whole training state; a second run goes on from the last one
  WORKDIR/image_tokenizer_metrics.jsonl             one JSON object a logged step
"""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import UInt8

from cm3leon_jax.checkpoints import Checkpoints, abstract_on, check_unchanged
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.manifest import OfImageTokenizer
from cm3leon_jax.data.corpus.training_samples import load_image_sample
from cm3leon_jax.errors import RestartError, UserError
from cm3leon_jax.files import remove_partial_files
from cm3leon_jax.image_tokenizers.vqgan.codec import (
    CONFIG_FILE,
    ImageTokenizer,
    architecture,
    read_image_tokenizer_record,
)
from cm3leon_jax.image_tokenizers.vqgan.config import ImageTokenizerTrainingConfig
from cm3leon_jax.image_tokenizers.vqgan.lpips import SMALLEST_SIDE, load_lpips
from cm3leon_jax.image_tokenizers.vqgan.train_step import Recipe, TrainingState, initial_state, make_train_step
from cm3leon_jax.lock import lock
from cm3leon_jax.preemption import PreemptionHandler
from cm3leon_jax.progress import TrainingLog
from cm3leon_jax.records import read_record

METRICS_FILE = "image_tokenizer_metrics.jsonl"
KEPT_CHECKPOINTS = 2
HELD_OUT_FRACTION = 0.02
FEWEST_HELD_OUT = 16
# They may change between a run and its continuation.
FREE_VALUES = ("num_steps", "log_every", "save_every")


def run(config: Config, workdir: Path, arguments: Namespace) -> int:
    """The command `cm3leon train-image-tokenizer`."""
    del arguments
    with lock(config.image_tokenizer.path, "train-image-tokenizer"):
        remove_partial_files(config.image_tokenizer.path)
        return _run(config, workdir)


def _run(config: Config, workdir: Path) -> int:
    path = Path(config.image_tokenizer.path)
    training = config.image_tokenizer_training
    record = _record(config)
    if _is_finished(path, record, training.num_steps):
        print(f"the image tokenizer at {path} is already trained: {training.num_steps:,} steps of this config")
        return 0
    _refuse_to_orphan_corpus(config)
    devices = jax.local_devices()
    if training.batch_size % len(devices):
        raise UserError(
            f"config.image_tokenizer_training.batch_size is {training.batch_size}: "
            f"it must be a multiple of the {len(devices)} devices of this host"
        )
    if training.perceptual_weight > 0 and config.image_tokenizer.resolution < SMALLEST_SIDE:
        raise UserError(
            f"config.image_tokenizer.resolution is {config.image_tokenizer.resolution}: LPIPS halves the side four "
            f"times and needs {SMALLEST_SIDE}; set config.image_tokenizer_training.perceptual_weight to 0"
        )
    recipe = Recipe(config.image_tokenizer, training)
    images, held_out = split_sample(
        load_image_sample(
            config.corpus,
            Path(config.image_tokenizer.path) / "sample",
            config.image_tokenizer_training.num_images,
            config.image_tokenizer.resolution,
            config.image_tokenizer.in_channels,
        )
    )
    lpips_weights = load_lpips(training.perceptual_weights_file) if training.perceptual_weight > 0 else None
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)

    state = train(recipe, images, lpips_weights, mesh, path / "checkpoints", workdir / METRICS_FILE, record)

    tokenizer = ImageTokenizer(config.image_tokenizer, state.parameters)
    score = evaluate(tokenizer, held_out, training.batch_size)
    tokenizer.save(path, training=record | {"held_out": score})
    print(
        f"image tokenizer {tokenizer.fingerprint} at {path}: on {len(held_out):,} held-out images "
        f"PSNR {score['psnr']:.2f} dB, {score['codes_used']} of {config.image_tokenizer.codebook_size} codes used, "
        f"perplexity {score['perplexity']:.1f}"
    )
    return 0


def train(
    recipe: Recipe,
    images: UInt8[np.ndarray, "n R R C"],
    lpips_weights: dict[str, np.ndarray] | None,
    mesh: Mesh,
    checkpoints: Path,
    metrics_file: Path,
    record: dict[str, Any],
) -> TrainingState:
    """From the last checkpoint, or the seed, to the last step; batch t follows from the seed and t alone.

    Raises:
      UserError: if the checkpoints are of another config, or the loss or the parameters are no longer finite.
      RestartError: if it was told to stop, and has saved.
    """
    training = recipe.training
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    weights = None if lpips_weights is None else jax.device_put(lpips_weights, replicated)
    step_function = make_train_step(recipe, mesh)
    with Checkpoints(checkpoints, keep=KEPT_CHECKPOINTS) as kept, PreemptionHandler() as stop:
        state = jax.device_put(initial_state(recipe, jnp.asarray(batch_at(images, training, 0))), replicated)
        if kept.latest_step is not None:
            _require_same(kept.meta(kept.latest_step), record, checkpoints)
            everywhere = jax.tree.map(lambda _: replicated, state)
            state = kept.restore(kept.latest_step, abstract_on(state, everywhere))
        first = int(state.step)
        if first > training.num_steps:
            raise UserError(
                f"{checkpoints} is at step {first:,}, beyond config.image_tokenizer_training.num_steps "
                f"{training.num_steps:,}: raise it, or delete the folder"
            )
        log = TrainingLog(
            "image tokenizer",
            metrics_file,
            first,
            training.num_steps,
            training.log_every,
            (training.batch_size, "images"),
            "lower config.image_tokenizer_training.learning_rate, or lengthen warmup_steps, and run it again with "
            "another config.image_tokenizer.path",
            lambda values: (
                f"loss {values['loss']:.3f}, PSNR {values['psnr']:.1f} dB, {values['codes_used']:.0f} codes "
                f"(perplexity {values['perplexity']:.0f})"
            ),
        )
        try:
            for step in range(first, training.num_steps):
                batch = jax.device_put(batch_at(images, training, step), split)
                adversarial = recipe.has_discriminator and step >= training.discriminator_start
                state, metrics = step_function(state, batch, weights, adversarial)
                done = step + 1
                is_last = done == training.num_steps
                stopping = stop.is_due() and not is_last
                due = done % training.save_every == 0 or is_last or stopping
                log.step(done, metrics, force=due)
                if due:
                    with log.saving(done):
                        kept.save(done, state, record)
                if stopping:
                    raise RestartError(f"stopped and saved at step {done:,}; run the same command again to continue")
        finally:
            log.close()
    return state


def batch_at(
    images: UInt8[np.ndarray, "n R R C"], training: ImageTokenizerTrainingConfig, step: int
) -> UInt8[np.ndarray, "B R R C"]:
    """The batch of a step: random images, each flipped or not, from the seed and the step alone."""
    random = np.random.Generator(np.random.Philox(key=[training.seed, step]))
    # In order of place, which is kinder to a memory-mapped file; the losses do not care.
    batch = images[np.sort(random.integers(0, len(images), training.batch_size))]
    if training.flip:
        flipped = random.random(training.batch_size) < 0.5
        batch = np.where(flipped[:, None, None, None], batch[:, :, ::-1], batch)
    return batch


def split_sample(
    sample: UInt8[np.ndarray, "n R R C"],
) -> tuple[UInt8[np.ndarray, "n1 R R C"], UInt8[np.ndarray, "n2 R R C"]]:
    """Images to train on, and the last 2% (at least 16) to measure on.

    Raises:
      UserError: if no more than half would be left to train on.
    """
    held_out = max(FEWEST_HELD_OUT, round(HELD_OUT_FRACTION * len(sample)))
    if len(sample) < 2 * held_out:
        raise UserError(
            f"the mixture gave {len(sample)} images to train the image tokenizer on: at least {2 * held_out}, "
            f"{held_out} of which are held out"
        )
    return sample[:-held_out], sample[-held_out:]


def evaluate(tokenizer: ImageTokenizer, images: UInt8[np.ndarray, "n R R C"], batch_size: int) -> dict[str, Any]:
    """PSNR in dB over all pixels, and how many codes the images use and how evenly."""
    squared_error, counts = 0.0, np.zeros(tokenizer.config.codebook_size, np.int64)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        codes = tokenizer.encode(batch, batch_size)
        difference = tokenizer.decode(codes, batch_size).astype(np.float64) - batch
        squared_error += float(np.sum((difference / 255) ** 2))
        counts += np.bincount(codes.ravel(), minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return {
        "psnr": -10 * math.log10(max(squared_error / images.size, 1e-10)),
        "codes_used": int(np.sum(counts > 0)),
        "perplexity": float(np.exp(-np.sum(shares * np.log(shares)))),
    }


def _record(config: Config) -> dict[str, Any]:
    # What a continuation must share with its start.
    return {
        "architecture": architecture(config.image_tokenizer),
        "values": dataclasses.asdict(config.image_tokenizer_training),
        "mixture": config.corpus.mixture,
        "split": config.corpus.train_split,
    }


def _is_finished(path: Path, record: dict[str, Any], num_steps: int) -> bool:
    if not (path / CONFIG_FILE).is_file():
        return False
    stored = read_image_tokenizer_record(path).get("training")
    if not stored:
        raise UserError(
            f"{path} holds an image tokenizer that was not trained by this command: use it as it is, "
            "or set another config.image_tokenizer.path"
        )
    _require_same(stored, record, path)
    ImageTokenizer.load(path)
    return stored["values"]["num_steps"] == num_steps


def _require_same(stored: Mapping[str, Any], record: dict[str, Any], path: Path) -> None:
    free = [f"values.{name}" for name in FREE_VALUES]
    check_unchanged(stored, record, free, f"config.image_tokenizer.path: {path} was")


def _refuse_to_orphan_corpus(config: Config) -> None:
    """A tokenizer that goes on training is another one, and no longer that of a corpus prepared with it."""
    manifest = Path(config.corpus.path) / "manifest.json"
    stored = Path(config.image_tokenizer.path) / CONFIG_FILE
    if manifest.exists() and stored.exists():
        fix = f"delete {config.corpus.path} and prepare it again"
        prepared = read_record(manifest, "the corpus manifest", OfImageTokenizer, fix)["image_tokenizer"]
        if prepared["fingerprint"] == read_image_tokenizer_record(stored.parent)["fingerprint"]:
            raise UserError(
                f"the corpus {config.corpus.path} was prepared with the image tokenizer {stored.parent}: training it "
                "further would make that corpus unreadable; delete the corpus, or set another "
                "config.image_tokenizer.path"
            )
