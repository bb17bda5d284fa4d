"""The captioned images that the encoder learns from, drawn from the mixture's training split.

BI_ENCODER/sample/images.npy     uint8 [n, R, R, 3], memory-mapped
BI_ENCODER/sample/texts.jsonl      one JSON string a line
BI_ENCODER/sample/sample.json      what they were drawn from; another mixture or size draws them again
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.image_sample import write_header
from cm3leon_jax.data.sources.reading import folder_changes, provenance_of
from cm3leon_jax.documents import Document, ImageSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write, read_json, write_json
from cm3leon_jax.images import UnreadableImage, decode_image

_CHANNELS = 3


@dataclass(frozen=True)
class PairSample:
    """Texts and images, one of each a pair."""

    texts: list[str]
    images: UInt8[np.ndarray, "n R R 3"]


def load_pair_sample(config: Config) -> PairSample:
    """The first `encoder_training.num_pairs` different pairs: documents with a text and exactly one image.

    They are drawn on the first call, in a process of their own, so that TensorFlow never enters the caller's.

    Raises:
      UserError: if the mixture cannot be read or holds no such documents.
    """
    folder = Path(config.encoder.path) / "sample"
    wanted = _provenance(config)
    record = read_json(folder / "sample.json", "the pair sample") if (folder / "sample.json").exists() else {}
    is_there = (folder / "images.npy").exists() and (folder / "texts.jsonl").exists()
    if not is_there or {name: record.get(name) for name in wanted} != wanted:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as child:
            child.submit(_draw, config, folder, wanted).result()
    elif changes := folder_changes(config.corpus, record):
        print(f"the pair sample is of an older state of the folder ({changes}); delete {folder} to draw it again")
    texts = [json.loads(line) for line in (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    return PairSample(texts, np.load(folder / "images.npy", mmap_mode="r"))


def _provenance(config: Config) -> dict[str, Any]:
    return {
        "mixture": config.corpus.mixture,
        "split": config.corpus.train_split,
        "asked": config.encoder.training.num_pairs,
        "resolution": config.encoder.resolution,
    }


def _draw(config: Config, folder: Path, provenance: dict[str, Any]) -> None:
    from cm3leon_jax.data.sources.reading import read_documents

    sources = provenance_of(config.corpus)
    resolution, asked = provenance["resolution"], provenance["asked"] or None
    seen: set[bytes] = set()
    unreadable = 0
    # The record goes first and comes back last, so that pairs never lie beside the record of others.
    (folder / "sample.json").unlink(missing_ok=True)
    with (
        atomic_write(folder / "images.npy") as temporary,
        temporary.open("wb") as images,
        atomic_write(folder / "texts.jsonl") as temporary_texts,
        temporary_texts.open("w", encoding="utf-8") as texts,
        tqdm(total=asked, unit=" pairs", desc="pair sample", disable=None) as progress,
    ):
        write_header(images, 0, resolution, _CHANNELS)
        for document in read_documents(config.corpus, config.corpus.train_split):
            image = _only_image(document)
            if image is None or not document.text.strip():
                continue
            digest = hashlib.blake2b(image.encoded + b"\0" + document.text.encode(), digest_size=12).digest()
            if digest in seen:
                continue
            try:
                pixels = decode_image(image.encoded, resolution, _CHANNELS)
            except UnreadableImage:
                unreadable += 1
                continue
            seen.add(digest)
            images.write(pixels.tobytes())
            texts.write(json.dumps(document.text) + "\n")
            progress.update()
            if len(seen) == asked:
                break
        if not seen:
            raise UserError(
                f"config.corpus.mixture {config.corpus.mixture!r} has no documents of a text and one readable image "
                f"in its split {config.corpus.train_split!r} ({unreadable} are unreadable): CLIP learns from them; "
                "take config.encoder.family='tfidf', or import a CLIP folder"
            )
        images.seek(0)
        write_header(images, len(seen), resolution, _CHANNELS)
    write_json(folder / "sample.json", {**provenance, "count": len(seen), "unreadable": unreadable, "sources": sources})


def _only_image(document: Document) -> ImageSegment | None:
    images = [segment for segment in document.segments if isinstance(segment, ImageSegment)]
    return images[0] if len(images) == 1 else None
