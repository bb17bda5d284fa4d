"""The images that an image tokenizer learns from, and the captioned images that an encoder learns from.

FOLDER/images.npy     uint8 [n, R, R, C], memory-mapped
FOLDER/texts.jsonl    one JSON string per line; only with captioned images
FOLDER/sample.json    what they were taken from; another mixture or size takes them again
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from cm3leon_jax.child_process import call_in_child
from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.sources.reading import current_changes, provenance_of
from cm3leon_jax.documents import Document, ImageSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write, read_json, remove, size_of, write_json
from cm3leon_jax.images import UnreadableImage, decode_image
from cm3leon_jax.log_handler import show_messages
from cm3leon_jax.storage.mirror import fetch_arrays

log = logging.getLogger(__name__)

# Of a sample, the last are held out.
_HELD_OUT_FRACTION = 0.02
_FEWEST_HELD_OUT = 16


@dataclass(frozen=True)
class PairSample:
    """Texts and images, one of each per pair."""

    texts: list[str]
    images: UInt8[np.ndarray, "n R R 3"]


@dataclass(frozen=True)
class SampleSpec:
    """What a sample is of."""

    mixture: str
    split: str
    # The first different ones, so many; 0: all.
    max_count: int
    resolution: int
    channels: int
    with_texts: bool
    # How they became squares, where it is another way than by default.
    squaring: str = ""


def load_image_sample(
    corpus: CorpusConfig, folder: Path, count: int, resolution: int, channels: int
) -> UInt8[np.ndarray, "n R R C"]:
    """The first `count` different images of the mixture's training split, memory-mapped; 0: all.

    They are taken on the first call, in a process of their own, so that TensorFlow never enters the caller's.
    """
    spec = _spec(corpus, count, resolution, channels, with_texts=False)
    _take_if_needed(corpus, folder, spec)
    return _images_of(folder)


def load_pair_sample(corpus: CorpusConfig, folder: Path, count: int, resolution: int) -> PairSample:
    """The same of pairs: documents with a text and exactly one image, which has three channels."""
    spec = _spec(corpus, count, resolution, channels=3, with_texts=True)
    _take_if_needed(corpus, folder, spec)
    texts = [json.loads(line) for line in (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    return PairSample(texts, _images_of(folder))


def _spec(corpus: CorpusConfig, count: int, resolution: int, channels: int, with_texts: bool) -> SampleSpec:
    squaring = corpus.squaring.description()
    return SampleSpec(corpus.mixture, corpus.train_split, count, resolution, channels, with_texts, squaring)


def _images_of(folder: Path) -> UInt8[np.ndarray, "n R R C"]:
    fetch_arrays([folder / "images.npy"])
    return np.load(folder / "images.npy", mmap_mode="r")


def _take_if_needed(corpus: CorpusConfig, folder: Path, spec: SampleSpec) -> None:
    wanted, file = dataclasses.asdict(spec), folder / "sample.json"
    names = ["images.npy", *(["texts.jsonl"] if spec.with_texts else [])]
    record = read_json(file, "the sample") if file.exists() else {}
    # An older record has no squaring, for which the default is meant.
    if {name: record.get(name, "") for name in wanted} != wanted or any(
        size_of(folder / name) is None for name in names
    ):
        call_in_child(_take_in_child, corpus, folder, spec)
    elif changes := current_changes(corpus, record):
        log.info(f"the sample is of an older state of the documents ({changes}); delete {folder} to take it again")


def _take_in_child(corpus: CorpusConfig, folder: Path, spec: SampleSpec) -> None:
    show_messages()
    take_sample(corpus, folder, spec)


def take_sample(corpus: CorpusConfig, folder: Path, spec: SampleSpec) -> None:
    """Writes a sample; needs seqio; a `UserError` if the mixture cannot be read or holds nothing to take."""
    from cm3leon_jax.data.sources.reading import read_documents

    sources = provenance_of(corpus)
    what, items = ("pair", _pairs) if spec.with_texts else ("image", _images)
    # The same image with several captions, or in several tasks, counts once; with another text it is another pair.
    seen: set[bytes] = set()
    unreadable = 0
    # The record is deleted first and written last, so that images are never next to the record of others.
    remove(folder / "sample.json")
    with ExitStack() as stack:
        images = stack.enter_context(stack.enter_context(atomic_write(folder / "images.npy")).open("wb"))
        texts: IO[str] | None = None
        if spec.with_texts:
            temporary = stack.enter_context(atomic_write(folder / "texts.jsonl"))
            texts = stack.enter_context(temporary.open("w", encoding="utf-8"))
        progress = tqdm(total=spec.max_count or None, unit=f" {what}s", desc=f"{what} sample", disable=None)
        stack.enter_context(progress)
        _write_header(images, 0, spec)
        candidates = (item for document in read_documents(corpus, spec.split) for item in items(document))
        for image, text in candidates:
            content = image.encoded if text is None else image.encoded + b"\0" + text.encode()
            digest = hashlib.blake2b(content, digest_size=12).digest()
            if digest in seen:
                continue
            try:
                pixels = decode_image(image.encoded, spec.resolution, spec.channels, corpus.squaring)
            except UnreadableImage:
                unreadable += 1
                continue
            seen.add(digest)
            images.write(pixels.tobytes())
            if texts is not None:
                texts.write(json.dumps(text) + "\n")
            progress.update()
            if len(seen) == spec.max_count:
                break
        if not seen:
            raise UserError(_nothing_found(spec, unreadable))
        images.seek(0)
        _write_header(images, len(seen), spec)
    counts = {"count": len(seen), "unreadable": unreadable, "sources": sources}
    write_json(folder / "sample.json", dataclasses.asdict(spec) | counts)


def _images(document: Document) -> Iterator[tuple[ImageSegment, str | None]]:
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            yield segment, None


def _pairs(document: Document) -> Iterator[tuple[ImageSegment, str | None]]:
    images = [segment for segment in document.segments if isinstance(segment, ImageSegment)]
    if len(images) == 1 and document.text.strip():
        yield images[0], document.text


def _nothing_found(spec: SampleSpec, unreadable: int) -> str:
    what = "documents of a text and one readable image" if spec.with_texts else "readable images"
    use = "the image tokenizer learns from them"
    if spec.with_texts:
        use = "CLIP learns from them; take config.encoder.family='tfidf', or import a folder of CLIP or SigLIP"
    return (
        f"config.corpus.mixture {spec.mixture!r} has no {what} in its split {spec.split!r} "
        f"({unreadable} are unreadable): {use}"
    )


def _write_header(file: Any, count: int, spec: SampleSpec) -> None:
    """The NumPy header of a file of `count` images, whose bytes follow; written again when their number is known."""
    # NumPy leaves room for the first axis to grow, so the header is as long for 0 images as for the final number.
    shape = (count, spec.resolution, spec.resolution, spec.channels)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def num_held_out(count: int, what: str) -> int:
    """How many of a sample, at its end, are measured on and not trained on: 2%, at least 16.

    Raises:
      UserError: if no more than half would be left to train on; `what` they are.
    """
    held_out = max(_FEWEST_HELD_OUT, round(_HELD_OUT_FRACTION * count))
    if count < 2 * held_out:
        raise UserError(f"the mixture gave {count} {what}: at least {2 * held_out}, {held_out} of which are held out")
    return held_out
