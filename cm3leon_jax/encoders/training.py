"""Makes the encoder that retrieval finds neighbors by: trains CLIP on the mixture, or counts its words.

Reads the values under `encoder` and `encoder_training` of the config. CLIP uses all devices, and reads texts with
the run's vocabulary; an interrupted training goes on when it is run again.

  BI_ENCODER/config.json, model.safetensors, ...    the finished encoder, for `prepare` and `generate`
  BI_ENCODER/checkpoints                            the whole training state; a second run goes on from the last one
  WORKDIR/bi_encoder_metrics.jsonl                  one JSON object a logged step
"""

from __future__ import annotations

import dataclasses
import hashlib
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from cm3leon_jax.checkpoints import check_unchanged
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.manifest import OfBiEncoder
from cm3leon_jax.data.corpus.training_samples import PairSample, load_pair_sample
from cm3leon_jax.data.sources.reading import provenance_of
from cm3leon_jax.encoders.base import CONFIG_FILE, Encoder
from cm3leon_jax.encoders.clip import training as clip_training
from cm3leon_jax.encoders.clip.encoder import ClipEncoder
from cm3leon_jax.encoders.clip.inputs import ClipTokenizer, ImageNormalization, SpecialTokenIds
from cm3leon_jax.encoders.clip.model import ClipArchitecture
from cm3leon_jax.encoders.loading import load_encoder, read_bi_encoder_record
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import remove_partial_files, write_json
from cm3leon_jax.lock import lock
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.records import read_record
from cm3leon_jax.vocabulary import Vocabulary

METRICS_FILE = "bi_encoder_metrics.jsonl"
HELD_OUT_FRACTION = 0.02
FEWEST_HELD_OUT = 16
# They may change between a run and its continuation.
FREE_VALUES = ("num_steps", "log_every", "save_every")
# Rows of a table are rounded up to a multiple of this, so that it shards and tiles well.
_ROWS = 128
# Pairs searched side by side for `recall`.
_CHUNK = 1024


def run(config: Config, workdir: Path, arguments: Namespace) -> int:
    """The command `cm3leon train-encoder`."""
    del arguments
    with lock(config.encoder.path, "train-encoder"):
        remove_partial_files(config.encoder.path)
        return _run(config, workdir)


def _run(config: Config, workdir: Path) -> int:
    path = Path(config.encoder.path)
    if config.encoder.kind == "tfidf":
        record = _record(config)
        if not _is_finished(path, record):
            _refuse_to_orphan_neighbors(config)
            _count(config, record)
        return 0
    vocabulary = Vocabulary.load(config.vocabulary.path)
    record = _record(config) | {
        "vocabulary": vocabulary.fingerprint,
        "values": dataclasses.asdict(config.encoder_training),
    }
    if not _is_finished(path, record):
        _refuse_to_orphan_neighbors(config)
        _train(config, workdir, vocabulary, record)
    return 0


def split_sample(sample: PairSample) -> tuple[PairSample, PairSample]:
    """Pairs to train on, and the last 2% (at least 16) to measure on.

    Raises:
      UserError: if no more than half would be left to train on.
    """
    count = len(sample.texts)
    held_out = max(FEWEST_HELD_OUT, round(HELD_OUT_FRACTION * count))
    if count < 2 * held_out:
        raise UserError(
            f"the mixture gave {count} pairs of a text and an image to train the encoder on: at least "
            f"{2 * held_out}, {held_out} of which are held out"
        )
    cut = count - held_out
    return PairSample(sample.texts[:cut], sample.images[:cut]), PairSample(sample.texts[cut:], sample.images[cut:])


def recall(encoder: Encoder, pairs: PairSample) -> dict[str, float]:
    """Share of the texts whose nearest image is theirs, and of the images whose nearest text is (recall@1).

    Where the pair that is found has the same text, or the same image, it is right: no encoder could tell.
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


def _train(config: Config, workdir: Path, vocabulary: Vocabulary, record: dict[str, Any]) -> None:
    path, training = Path(config.encoder.path), config.encoder_training
    mesh = make_mesh(config.mesh)
    ways = mesh.shape["replica"] * mesh.shape["fsdp"]
    if training.batch_size % ways:
        raise UserError(
            f"config.encoder_training.batch_size is {training.batch_size}: it must be a multiple of the {ways} ways "
            "of the mesh axes replica and fsdp"
        )
    pairs, held_out = split_sample(
        load_pair_sample(
            config.corpus,
            Path(config.encoder.path) / "sample",
            config.encoder_training.num_pairs,
            config.encoder.resolution,
        )
    )
    if training.batch_size > len(pairs.texts):
        raise UserError(
            f"config.encoder_training.batch_size is {training.batch_size}: at most the {len(pairs.texts)} pairs "
            "that there are to train on, or a pair would be held against itself"
        )
    # Of the run's ids a text has none beyond the text tokens.
    rows = -(-vocabulary.first_image_code // _ROWS) * _ROWS
    architecture = ClipArchitecture.of(config.encoder, rows)
    special_tokens = SpecialTokenIds(vocabulary.start, vocabulary.end, vocabulary.pad)
    tokenizer_json = (Path(config.vocabulary.path) / "tokenizer.json").read_text(encoding="utf-8")
    weights = clip_training.train(
        architecture,
        training,
        ClipTokenizer(tokenizer_json, special_tokens, architecture.max_text_tokens),
        pairs,
        mesh,
        path / "checkpoints",
        workdir / METRICS_FILE,
        lambda stored: _require_same(stored, record, path / "checkpoints"),
        record,
    )
    encoder = ClipEncoder(architecture, weights, tokenizer_json, special_tokens, ImageNormalization())
    found = recall(encoder, held_out)
    encoder.save(path, training=record | {"held_out": found})
    print(
        f"encoder {encoder.fingerprint} at {path}: on {len(held_out.texts):,} held-out pairs recall@1 "
        f"{found['text_to_image']:.1%} text to image, {found['image_to_text']:.1%} image to text"
    )


def _count(config: Config, record: dict[str, Any]) -> None:
    from cm3leon_jax.encoders import tfidf

    sources = provenance_of(config.corpus)
    encoder = tfidf.fit(config)
    encoder.save(config.encoder.path, training=record)
    write_json(Path(config.encoder.path) / "trained_on.json", {"sources": sources})
    print(f"encoder {encoder.fingerprint} at {config.encoder.path}: word statistics and a thumbnail")


def _record(config: Config) -> dict[str, Any]:
    # What decides the encoder; a continuation must share it with its start.
    encoder = {name: value for name, value in dataclasses.asdict(config.encoder).items() if name != "path"}
    record = {"mixture": config.corpus.mixture, "split": config.corpus.train_split}
    if config.encoder.kind == "clip":
        return record | {"encoder": encoder}
    names = ("kind", "embedding_dim", "resolution")
    values = {
        "num_pairs": config.encoder_training.num_pairs,
        "image_resolution": config.image_tokenizer.resolution,
    }
    return record | {"encoder": {name: encoder[name] for name in names}, "values": values}


def _is_finished(path: Path, record: dict[str, Any]) -> bool:
    if not (path / CONFIG_FILE).is_file():
        return False
    stored = read_bi_encoder_record(path).get("training")
    if not stored:
        raise UserError(
            f"{path} holds an encoder that was not trained by this command: use it as it is, or set another "
            "config.encoder.path"
        )
    _require_same(stored, record, path)
    fingerprint = load_encoder(path).fingerprint
    if stored.get("values", {}).get("num_steps") != record["values"].get("num_steps"):
        return False
    print(f"the encoder {fingerprint} at {path} is already made with this config: nothing to do")
    return True


def _require_same(stored: Mapping[str, Any], record: dict[str, Any], path: Path) -> None:
    free = [f"values.{name}" for name in FREE_VALUES]
    check_unchanged(stored, record, free, f"config.encoder.path: {path} was")


def _refuse_to_orphan_neighbors(config: Config) -> None:
    """Neighbors that were found by one encoder's vectors are not those of another."""
    manifest = Path(config.corpus.path) / "retrieval" / "manifest.json"
    stored = Path(config.encoder.path) / CONFIG_FILE
    if manifest.exists() and stored.exists():
        fix = f"delete {manifest.parent} and run `cm3leon prepare` again"
        found_by = read_record(manifest, "the manifest of the neighbors", OfBiEncoder, fix)["encoder"]
        if found_by == read_bi_encoder_record(stored.parent)["fingerprint"]:
            raise UserError(
                f"the neighbors in {manifest.parent} were found with the encoder {stored.parent}, which would be "
                "replaced: delete that folder, or set another config.encoder.path"
            )
