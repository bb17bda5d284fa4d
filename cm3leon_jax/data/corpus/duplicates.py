"""Finds documents that are alike, of all tasks and both splits, before any image is encoded.

    CORPUS/TASK/SPLIT/hashes-00000.npy   for each image of a shard's examples its hash, its example, the text's hash
    CORPUS/TASK/SPLIT/duplicates.npy     int64 [n, 4]: an example, why it is dropped, the split and example it repeats

Each process hashes the shards that it writes later, and goes on where an interrupted run stopped.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int64, Shaped, UInt64
from tqdm import tqdm

from cm3leon_jax.data.corpus.array_files import save_array
from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.pair_scores import ScoreFloor
from cm3leon_jax.data.curation.config import DuplicatesConfig
from cm3leon_jax.data.curation.perceptual_hash import SIDE, perceptual_hash
from cm3leon_jax.data.curation.twins import classes, repeated, twins_of
from cm3leon_jax.data.sources.reading import ShardSlice, SkippedExample, TaskReader
from cm3leon_jax.distributed import barrier, is_coordinator
from cm3leon_jax.documents import Document, ImageSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import size_of, wait_for
from cm3leon_jax.images import UnreadableImage, decode_image
from cm3leon_jax.squaring import Squaring
from cm3leon_jax.storage.mirror import fetch_arrays
from cm3leon_jax.threads import NUM_THREADS, mapped_ahead

_HASHED = np.dtype([("example", "<i8"), ("image", "<u8"), ("text", "<u8"), ("is_image", "?")])
_HELD_OUT, _DOCUMENT, _IMAGE = range(3)
_REASONS = ("image that is held out, too", "duplicate document", "duplicate image")

# The examples of a task and split that repeat others, and why they are dropped.
Duplicates = Mapping[int, SkippedExample]


class _Split(NamedTuple):
    task: TaskReader
    name: str
    folder: Path


def find_duplicates(
    corpus: CorpusConfig, path: Path, tasks: Sequence[TaskReader], floors: Mapping[tuple[str, str], ScoreFloor]
) -> dict[tuple[str, str], Duplicates]:
    """The examples that `config.corpus.duplicates` drops, by task and split. All processes call this, and wait for all.

    What is below a floor, by task and split, is no document, and nothing repeats it.

    Raises:
      UserError: if a file of hashes is damaged.
    """
    config = corpus.duplicates
    if not config.any:
        return {}
    splits = [
        _Split(task, name, path / task.name / name)
        for name in (corpus.held_out_split, corpus.train_split)
        for task in sorted(tasks, key=lambda task: task.name)
        if name in task.splits
    ]
    if any(size_of(split.folder / "duplicates.npy") is None for split in splits):
        for split in splits:
            _write_hashes(split, corpus, floors.get((split.task.name, split.name)))
        barrier("all images are hashed")
        if is_coordinator():
            hashed = [_read_hashes(split.folder) for split in splits]
            is_held_out = [split.name == corpus.held_out_split for split in splits]
            for split, rows in zip(splits, _dropped(hashed, is_held_out, config), strict=True):
                save_array(split.folder / "duplicates.npy", rows)
    found: dict[tuple[str, str], Duplicates] = {}
    for split in splits:
        rows = np.load(wait_for(split.folder / "duplicates.npy")).tolist()
        found[split.task.name, split.name] = {
            example: SkippedExample(f"{_REASONS[why]}: {_named(splits[twin], index)}", is_fault=False)
            for example, why, twin, index in rows
        }
    return found


def _named(split: _Split, index: int) -> str:
    """An example that another repeats, for messages."""
    return f"{split.task.name} {split.name} {index} {split.task.where(split.name, index)}".rstrip()


def _write_hashes(split: _Split, corpus: CorpusConfig, floor: ScoreFloor | None) -> None:
    """Writes what is missing of this process's files of hashes."""
    split.folder.mkdir(parents=True, exist_ok=True)
    size, step = corpus.examples_per_shard, jax.process_count()
    own = itertools.count(jax.process_index(), step)
    start = next(number for number in own if size_of(_hashes_file(split.folder, number)) is None)
    is_missing = {start: True}

    def is_read(index: int) -> bool:
        number = index // size
        if number not in is_missing:
            is_own = (number - start) % step == 0
            is_missing[number] = is_own and size_of(_hashes_file(split.folder, number)) is None
        return is_missing[number]

    numbered = split.task.numbered(split.name, ShardSlice(size, start, step))
    documents = ((index, document) for index, document in numbered if is_read(index))
    kept = ((index, (floor.dropped(index) if floor else None) or document) for index, document in documents)
    examples = ((index, (index, document)) for index, document in kept)
    near = None if corpus.duplicates.max_distance is None else corpus.squaring
    hashed = mapped_ahead(lambda example: _hashed(*example, near), examples, 2 * NUM_THREADS)
    with tqdm(unit=" documents", desc=f"{split.task.name} {split.name}: hashes", disable=None) as progress:
        for number, rows in itertools.groupby(hashed, key=lambda example: example[0] // size):
            found = [np.zeros(0, _HASHED)]
            for _, each in rows:
                found.append(each)
                progress.update()
            save_array(_hashes_file(split.folder, number), np.concatenate(found))


def _hashes_file(folder: Path, shard: int) -> Path:
    return folder / f"hashes-{shard:05d}.npy"


def _hashed(index: int, document: Document | SkippedExample, near: Squaring | None) -> Shaped[np.ndarray, "n"]:
    """A row for each image of a document, one for a document without images, and none for what is no document."""
    if isinstance(document, SkippedExample):
        return np.zeros(0, _HASHED)
    hashes = list[int]()
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            try:
                hashes.append(_image_hash(segment.encoded, near))
            except UnreadableImage:
                # An interleaved document goes on without it.
                if document.min_images is None:
                    return np.zeros(0, _HASHED)
    text = _first_bits(f"{document.template} {len(hashes)} {document.text}".encode())
    return np.array([(index, image, text, bool(hashes)) for image in hashes or [0]], _HASHED)


def _image_hash(encoded: bytes, near: Squaring | None) -> int:
    return perceptual_hash(decode_image(encoded, SIDE, 1, near)) if near else _first_bits(encoded)


def _first_bits(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def _read_hashes(folder: Path) -> Shaped[np.ndarray, "n"]:
    found = [np.zeros(0, _HASHED)]
    numbered = (_hashes_file(folder, number) for number in itertools.count())
    files = list(itertools.takewhile(lambda file: size_of(file) is not None, numbered))
    fetch_arrays(files)
    for file in files:
        try:
            rows = np.load(file)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{file} is damaged ({error}): delete it and run `cm3leon prepare` again") from None
        if rows.dtype != _HASHED:
            raise UserError(f"{file} is of another version: delete it and run `cm3leon prepare` again")
        found.append(rows)
    return np.concatenate(found)


def _dropped(
    hashed: Sequence[Shaped[np.ndarray, "_"]], is_held_out: Sequence[bool], config: DuplicatesConfig
) -> Iterator[Int64[np.ndarray, "k 4"]]:
    """The rows of duplicates.npy of each split."""
    rows, distance = np.concatenate(hashed), config.max_distance or 0
    split = np.repeat(np.arange(len(hashed)), [len(each) for each in hashed])
    # Documents by their numbers in all splits.
    starts = np.flatnonzero(np.diff(rows["example"], prepend=-1) | np.diff(split, prepend=-1))
    document = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))
    why, twin = np.full(len(starts), -1), np.zeros(len(starts), np.int64)
    hashes: UInt64[np.ndarray, "n"] = rows["image"]
    if config.drop_held_out:
        of_held_out = np.array(is_held_out, bool)[split] & rows["is_image"]
        of_others = ~np.array(is_held_out, bool)[split] & rows["is_image"]
        twins = twins_of(hashes[of_others], hashes[of_held_out], distance)
        dropped = document[of_others][twins >= 0]
        why[dropped], twin[dropped] = _HELD_OUT, document[of_held_out][twins[twins >= 0]]
    if config.drop != "none":
        compared = why[document] < 0
        if config.drop == "images":
            compared &= rows["is_image"]
        texts = rows["text"][compared] if config.drop == "documents" else None
        pairs = repeated(document[compared], classes(hashes[compared], distance), texts)
        why[pairs[:, 0]] = _DOCUMENT if config.drop == "documents" else _IMAGE
        twin[pairs[:, 0]] = pairs[:, 1]
    example, of_split = rows["example"][starts], split[starts]
    found = (
        np.stack([example, why, of_split[twin], example[twin]], axis=1) if len(starts) else np.zeros((0, 4), np.int64)
    )
    for number in range(len(hashed)):
        yield found[(of_split == number) & (why >= 0)]
