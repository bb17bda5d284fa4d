"""How well the text of a document fits its images, by an encoder: documents below a floor are dropped.

    CORPUS/TASK/SPLIT/scores-00000.npy   float32 [examples of a shard]: the cosine of the vectors of text and image, of
                                         several images the lowest; NaN where there are not both

Each process scores its shards, and goes on where an interrupted run stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float32, UInt8
from tqdm import tqdm

from cm3leon_jax.data.corpus.array_files import save_array
from cm3leon_jax.data.corpus.document_tokenizer import DecodedDocument, DocumentTokenizer
from cm3leon_jax.data.sources.reading import ShardSlice, SkippedExample, TaskReader
from cm3leon_jax.distributed import is_coordinator
from cm3leon_jax.documents import Document
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import size_of
from cm3leon_jax.storage.mirror import fetch_arrays
from cm3leon_jax.threads import mapped_ahead

# Documents per call of the encoder; a block never reaches over a shard, so that scores do not depend on the processes.
_BLOCK = 256


@runtime_checkable
class PairEncoder(Protocol):
    """What scores need of an encoder: unit vectors of texts and images."""

    @property
    def fingerprint(self) -> str:
        """What tells it from others."""

    @property
    def is_joint(self) -> bool:
        """Whether the product of a text's and an image's vector compares them."""

    def encode_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        """Vectors of texts; zeros for one without a token."""

    def encode_images(self, images: UInt8[np.ndarray, "n R R C"]) -> Float32[np.ndarray, "n dim"]:
        """Vectors of images."""


# Loads the encoder of the run.
LoadEncoder = Callable[[], PairEncoder]
# An example as it is read, and with its images decoded.
_Pair = tuple[Document | SkippedExample, DecodedDocument | SkippedExample]


def load_scorer(load_encoder: LoadEncoder) -> PairEncoder:
    """The encoder of the run, if its vectors of texts and of images can be compared."""
    encoder = load_encoder()
    if not encoder.is_joint:
        raise UserError(
            "config.corpus.curation.min_clip_score compares texts with images, and the encoder of this run "
            "(config.encoder) does not: `cm3leon import` a CLIP or SigLIP, train a CLIP, or leave that out"
        )
    return encoder


def decoded_pairs(
    examples: Iterable[tuple[int, Document | SkippedExample]], tokens: DocumentTokenizer
) -> Iterator[tuple[int, _Pair]]:
    """Examples beside their decoded forms, which threads make ahead."""
    return mapped_ahead(lambda document: (document, tokens.decode(document)), examples, 2 * tokens.batch_size)


def with_floor(
    examples: Iterable[tuple[int, _Pair]], encoder: PairEncoder, least: float
) -> Iterator[tuple[int, DecodedDocument | SkippedExample]]:
    """The decoded examples, those below the floor as skipped ones."""
    for index, decoded, score in _scored(examples, encoder):
        yield index, below_floor(score, least) or decoded


def below_floor(score: float, least: float) -> SkippedExample | None:
    """Why an example with this score is dropped; None if it is not."""
    # What has no score is not dropped.
    return SkippedExample(f"CLIP score below {least:g}: {score:.3f}", is_fault=False) if score < least else None


def _scored(
    examples: Iterable[tuple[int, _Pair]], encoder: PairEncoder
) -> Iterator[tuple[int, DecodedDocument | SkippedExample, float]]:
    examples = iter(examples)
    while block := list(itertools.islice(examples, _BLOCK)):
        scores = _scores([pair for _, pair in block], encoder)
        for (index, (_, decoded)), score in zip(block, scores.tolist(), strict=True):
            yield index, decoded, score


def _scores(block: Sequence[_Pair], encoder: PairEncoder) -> Float32[np.ndarray, "n"]:
    found = np.full(len(block), np.nan, np.float32)
    compared = {number: pair for number, pair in enumerate(map(_compared, block)) if pair is not None}
    if not compared:
        return found
    numbers = np.array(list(compared))
    texts = encoder.encode_texts([text for text, _ in compared.values()])
    owner = np.repeat(np.arange(len(numbers)), [len(document.images) for _, document in compared.values()])
    images = np.stack([image for _, document in compared.values() for image in document.images])
    products = np.sum(texts[owner] * encoder.encode_images(images), axis=1)
    lowest = np.full(len(numbers), np.inf, np.float32)
    np.minimum.at(lowest, owner, products)
    # A text of which the encoder reads nothing has no vector.
    found[numbers] = np.where(texts.any(axis=1), lowest, np.nan)
    return found


def _compared(pair: _Pair) -> tuple[str, DecodedDocument] | None:
    """Text and images of a document that is a caption and its images."""
    document, decoded = pair
    if isinstance(document, SkippedExample) or isinstance(decoded, SkippedExample):
        return None
    is_caption = not document.template and document.min_images is None
    return (document.text, decoded) if is_caption and decoded.images and document.text.strip() else None


def write_scores(
    task: TaskReader, split: str, folder: Path, size: int, tokens: DocumentTokenizer, encoder: PairEncoder
) -> None:
    """Writes what is missing of this process's files of scores, of shards of `size` examples."""
    folder.mkdir(parents=True, exist_ok=True)
    step = jax.process_count()
    start = next(number for number in itertools.count(jax.process_index(), step) if not _is_there(folder, number))
    numbered = task.numbered(split, ShardSlice(size, start, step))
    disable = None if is_coordinator() else True
    with tqdm(unit=" documents", desc=f"{task.name} {split}: scores", disable=disable) as progress:
        for number, group in itertools.groupby(numbered, lambda each: each[0] // size):
            if (number - start) % step or _is_there(folder, number):
                continue
            scores = []
            for _, _, score in _scored(decoded_pairs(group, tokens), encoder):
                scores.append(score)
                progress.update()
            save_array(_file(folder, number), np.array(scores, np.float32))


def _is_there(folder: Path, number: int) -> bool:
    return size_of(_file(folder, number)) is not None


def _file(folder: Path, number: int) -> Path:
    return folder / f"scores-{number:05d}.npy"


class ScoreFloor:
    """The examples of a split that are below the floor, of which a shard's scores are in memory at a time."""

    def __init__(self, folder: Path, size: int, least: float) -> None:
        self._folder, self._size, self._least = folder, size, least
        self._number, self._scores = -1, np.zeros(0, np.float32)

    def dropped(self, index: int) -> SkippedExample | None:
        """Why an example is dropped; None if it is not.

        Raises:
          UserError: if the file of its scores is missing or damaged.
        """
        number, position = divmod(index, self._size)
        if number != self._number:
            self._number, self._scores = number, self._read(number)
        return below_floor(float(self._scores[position]), self._least)

    def _read(self, number: int) -> Float32[np.ndarray, "n"]:
        file = _file(self._folder, number)
        fetch_arrays([file])
        try:
            found = np.load(file)
        except FileNotFoundError:
            raise UserError(f"{file} is missing: run `cm3leon prepare` again") from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{file} is damaged ({error}): delete it and run `cm3leon prepare` again") from None
        if found.dtype != np.float32 or found.ndim != 1:
            raise UserError(f"{file} is of another version: delete it and run `cm3leon prepare` again")
        return found
