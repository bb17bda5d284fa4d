"""Trains an image tokenizer of any family on the images of a mixture, and measures it on held-out ones."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.manifest import OfImageTokenizer
from cm3leon_jax.data.corpus.training_samples import load_image_sample, num_held_out
from cm3leon_jax.distributed import READY_FILE, is_coordinator, run_on_coordinator
from cm3leon_jax.errors import EXIT_RESTART, UserError
from cm3leon_jax.image_tokenizers.base import (
    ImageTokenizer,
    architecture,
    image_tokenizer_class,
    load_image_tokenizer,
    read_image_tokenizer_record,
)
from cm3leon_jax.image_tokenizers.config import ImageTokenizerConfig
from cm3leon_jax.records import read_record
from cm3leon_jax.registry import load_attribute
from cm3leon_jax.training.resume import is_trained
from cm3leon_jax.weights import CONFIG_FILE

# Begins the names of the training's logs in the workdir.
LOG_NAME = "image_tokenizer"

log = logging.getLogger(__name__)


@runtime_checkable
class ImageTokenizerTrainer(Protocol):
    """What `ImageTokenizerConfig.trainer` names: made from the config of its family."""

    # Whether all processes of a run call `train`; otherwise one does while the others wait.
    is_distributed: bool

    def train(
        self, images: UInt8[np.ndarray, "n R R C"], workdir: Path, record: dict[str, Any]
    ) -> ImageTokenizer | None:
        """Trains, or goes on from the checkpoints in the config's `path`; None if a signal stopped it after saving.

        `record` is what a continuation must share with its start.
        """


def train_image_tokenizer(config: Config, workdir: Path) -> int:
    """Trains the image tokenizer of a config and saves it, unless that is done already; returns the exit code.

    All processes of a run call this. Raises a `UserError` if there is one of another config, or that a corpus needs.
    """
    wanted, path = config.image_tokenizer, Path(config.image_tokenizer.path)
    record = {
        "architecture": architecture(wanted),
        "values": dataclasses.asdict(wanted.training),
        "mixture": config.corpus.mixture,
        "split": config.corpus.train_split,
    }
    if _is_finished(path, record):
        log.info("the image tokenizer at %s is already trained with this config: nothing to do", path)
        return 0
    _check_no_corpus_needs_it(config)
    what = f"the training of image tokenizers of the family {wanted.family!r}"
    trainer: ImageTokenizerTrainer = load_attribute(wanted.trainer, what)(wanted)
    ready = path / READY_FILE
    run_on_coordinator(lambda: _load_images(config), ready)
    images, held_out = split_images(_load_images(config))
    tokenizer = None
    if trainer.is_distributed or is_coordinator():
        tokenizer = trainer.train(images, workdir, record)
        if tokenizer is None:
            return EXIT_RESTART
    run_on_coordinator(lambda: _save(cast(ImageTokenizer, tokenizer), held_out, path, record), ready)
    return 0


def _load_images(config: Config) -> UInt8[np.ndarray, "n R R C"]:
    wanted = config.image_tokenizer
    folder = Path(wanted.path) / "sample"
    return load_image_sample(config.corpus, folder, wanted.training.num_images, wanted.resolution, wanted.in_channels)


def _save(
    tokenizer: ImageTokenizer, held_out: UInt8[np.ndarray, "n R R C"], path: Path, record: dict[str, Any]
) -> None:
    score = evaluate(tokenizer, held_out)
    tokenizer.save(path, training=record | {"held_out": score})
    log.info(
        f"image tokenizer {tokenizer.fingerprint} at {path}: on {len(held_out):,} held-out images "
        f"PSNR {score['psnr']:.2f} dB, {score['codes_used']} of {tokenizer.config.codebook_size} codes used, "
        f"perplexity {score['perplexity']:.1f}"
    )


def split_images(
    sample: UInt8[np.ndarray, "n R R C"],
) -> tuple[UInt8[np.ndarray, "n1 R R C"], UInt8[np.ndarray, "n2 R R C"]]:
    """Images to train on, and the last 2% (at least 16; more than half is refused) to measure on."""
    held_out = num_held_out(len(sample), "images to train the image tokenizer on")
    return sample[:-held_out], sample[-held_out:]


def evaluate(tokenizer: ImageTokenizer, images: UInt8[np.ndarray, "n R R C"], batch_size: int = 64) -> dict[str, Any]:
    """PSNR in dB over all pixels, and how many codes the images use and how evenly."""
    squared_error, counts = 0.0, np.zeros(tokenizer.config.codebook_size, np.int64)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        codes = tokenizer.encode(batch, batch_size)
        difference = tokenizer.decode(codes, batch_size).astype(np.float64) - batch
        squared_error += float(np.sum((difference / 255) ** 2))
        counts += np.bincount(codes.ravel(), minlength=len(counts))
    frequencies = counts[counts > 0] / counts.sum()
    return {
        "psnr": -10 * math.log10(max(squared_error / images.size, 1e-10)),
        "codes_used": int(np.sum(counts > 0)),
        "perplexity": float(np.exp(-np.sum(frequencies * np.log(frequencies)))),
    }


class NothingToLearn:
    """The trainer of a family that has none: the config is all of the tokenizer."""

    is_distributed = False

    def __init__(self, config: ImageTokenizerConfig) -> None:
        self._config = config

    def train(self, images: np.ndarray, workdir: Path, record: dict[str, Any]) -> ImageTokenizer:
        """The tokenizer."""
        return image_tokenizer_class(self._config)(self._config)


def _is_finished(path: Path, record: dict[str, Any]) -> bool:
    if not (path / CONFIG_FILE).is_file():
        return False
    is_finished = is_trained(path, read_image_tokenizer_record(path).get("training"), record, "image_tokenizer")
    load_image_tokenizer(path)
    return is_finished


def _check_no_corpus_needs_it(config: Config) -> None:
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
