"""Makes the encoder of any family from a mixture, and measures it on held-out pairs."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.manifest import OfEncoder
from cm3leon_jax.data.corpus.training_samples import PairSample, num_held_out
from cm3leon_jax.distributed import READY_FILE, run_on_coordinator
from cm3leon_jax.encoders.base import Encoder, load_encoder, read_encoder_record
from cm3leon_jax.errors import EXIT_RESTART, UserError
from cm3leon_jax.records import read_record
from cm3leon_jax.registry import load_attribute
from cm3leon_jax.training.resume import is_trained
from cm3leon_jax.weights import CONFIG_FILE

# Begins the names of the training's logs in the workdir.
LOG_NAME = "encoder"
# Pairs searched at a time for `recall`.
_CHUNK = 1024

log = logging.getLogger(__name__)


@runtime_checkable
class EncoderTrainer(Protocol):
    """What `EncoderConfig.trainer` names: made from the whole config."""

    # What it depends on apart from its own part of the config, the mixture and its split.
    record: dict[str, Any]
    # Whether all processes of a run call `train`; otherwise one does while the others wait.
    is_distributed: bool

    def train(self, workdir: Path, record: dict[str, Any]) -> tuple[Encoder, PairSample | None] | None:
        """Makes the encoder; returns it with held-out pairs to measure it on, if texts and images compare.

        None if a signal stopped the training after saving. `record` is what a continuation must share with its start.
        """


def train_encoder(config: Config, workdir: Path) -> int:
    """Makes the encoder of a config and saves it, unless that is done already; returns the exit code.

    All processes of a run call this. Raises a `UserError` if there is one of another config, or one that neighbors were
    found with.
    """
    path = Path(config.encoder.path)
    if not config.encoder.trainer:
        raise UserError(
            f"config.encoder.family is {config.encoder.family!r}, which is not trained here: `cm3leon import` a folder "
            "of one, or train another family"
        )
    what = f"the training of encoders of the family {config.encoder.family!r}"
    trainer: EncoderTrainer = load_attribute(config.encoder.trainer, what)(config)
    encoder_values = dataclasses.asdict(config.encoder)
    del encoder_values["path"], encoder_values["training"]
    record = {
        "mixture": config.corpus.mixture,
        "split": config.corpus.train_split,
        "encoder": encoder_values,
        "values": dataclasses.asdict(config.encoder.training),
        **trainer.record,
    }
    if _is_finished(path, record):
        return 0
    _check_no_neighbors_need_it(config)
    ready = path / READY_FILE
    if not trainer.is_distributed:
        run_on_coordinator(lambda: _save(trainer.train(workdir, record), path, record), ready)
        return 0
    made = trainer.train(workdir, record)
    if made is None:
        return EXIT_RESTART
    run_on_coordinator(lambda: _save(made, path, record), ready)
    return 0


def _save(made: tuple[Encoder, PairSample | None] | None, path: Path, record: dict[str, Any]) -> None:
    assert made is not None
    encoder, held_out = made
    what = f"encoder {encoder.fingerprint} at {path}"
    if held_out is None:
        encoder.save(path, training=record)
        log.info(f"{what}: family {encoder.family}, vectors of {encoder.dim} numbers")
        return
    found = recall(encoder, held_out)
    encoder.save(path, training=record | {"held_out": found})
    log.info(
        f"{what}: on {len(held_out.texts):,} held-out pairs recall@1 "
        f"{found['text_to_image']:.1%} text to image, {found['image_to_text']:.1%} image to text"
    )


def split_pairs(sample: PairSample) -> tuple[PairSample, PairSample]:
    """Pairs to train on, and the last 2% (at least 16; more than half is refused) to measure on."""
    count = len(sample.texts)
    cut = count - num_held_out(count, "pairs of a text and an image to train the encoder on")
    return PairSample(sample.texts[:cut], sample.images[:cut]), PairSample(sample.texts[cut:], sample.images[cut:])


def recall(encoder: Encoder, pairs: PairSample) -> dict[str, float]:
    """Fraction of the texts whose nearest image is theirs, and of the images whose nearest text is (recall@1).

    A pair that has the same text, or the same image, counts as right: no encoder can tell the two apart.
    """
    _, same_text = np.unique(np.array(pairs.texts, dtype=object), return_inverse=True)
    digests = [hashlib.blake2b(np.ascontiguousarray(image)).digest() for image in pairs.images]
    _, same_image = np.unique(np.array(digests, dtype=object), return_inverse=True)
    texts, images = encoder.encode_texts(pairs.texts), encoder.encode_images(pairs.images)

    def is_right(found: Int64[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        return (same_text[found] == same_text) | (same_image[found] == same_image)

    return {
        "text_to_image": float(is_right(_nearest(texts, images)).mean()),
        "image_to_text": float(is_right(_nearest(images, texts)).mean()),
    }


def _nearest(queries: np.ndarray, others: np.ndarray) -> Int64[np.ndarray, "n"]:
    chunks = [queries[start : start + _CHUNK] for start in range(0, len(queries), _CHUNK)]
    return np.concatenate([np.argmax(chunk @ others.T, axis=1) for chunk in chunks])


def _is_finished(path: Path, record: dict[str, Any]) -> bool:
    if not (path / CONFIG_FILE).is_file():
        return False
    is_finished = is_trained(path, read_encoder_record(path).get("training"), record, "encoder")
    fingerprint = load_encoder(path).fingerprint
    if is_finished:
        log.info(f"the encoder {fingerprint} at {path} is already made with this config: nothing to do")
    return is_finished


def _check_no_neighbors_need_it(config: Config) -> None:
    """Neighbors that were found by one encoder's vectors are not those of another."""
    manifest = Path(config.corpus.path) / "retrieval" / "manifest.json"
    stored = Path(config.encoder.path) / CONFIG_FILE
    if manifest.exists() and stored.exists():
        fix = f"delete {manifest.parent} and run `cm3leon prepare` again"
        found_by = read_record(manifest, "the manifest of the neighbors", OfEncoder, fix)["encoder"]
        if found_by == read_encoder_record(stored.parent)["fingerprint"]:
            raise UserError(
                f"the neighbors in {manifest.parent} were found with the encoder {stored.parent}, which would be "
                "replaced: delete that folder, or set another config.encoder.path"
            )
