"""The neighbor lists of a prepared corpus: which training documents may precede each document.

    CORPUS/retrieval/manifest.json                     encoder, settings, and the tasks of the datastore
    CORPUS/retrieval/TASK/SPLIT/neighbors-00000.npy   int64 [documents, kept]: datastore indices; -1 is none
    CORPUS/retrieval/TASK/SPLIT/scores-00000.npy       float32 [documents, kept]: products of query and neighbor
    CORPUS/retrieval/TASK/SPLIT/lists-00000.json       the checksums of both

The datastore is the training documents of its tasks, end to end. Of the kept neighbors, the first were found by a
document's text, the others by its images. `retrieval/neighbor_search.py` writes these files.
"""

from __future__ import annotations

import dataclasses
import zlib
from bisect import bisect_right
from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32, Int64, UInt

from cm3leon_jax import counter_random
from cm3leon_jax.counter_random import Stream
from cm3leon_jax.data.corpus.array_files import open_array, save_arrays
from cm3leon_jax.data.corpus.manifest import NeighborsManifest
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import check_format, read_object
from cm3leon_jax.records import read_record
from cm3leon_jax.retrieval.config import RetrievalConfig

RETRIEVAL_FORMAT = 2
NONE = -1

# The fields of the config that decide the lists; the others say what training samples from them.
LIST_FIELDS = tuple(
    field.name
    for field in dataclasses.fields(RetrievalConfig)
    if field.name not in ("enabled", "num_retrieved", "sampling")
)


def neighbors_file(folder: Path, shard: int) -> Path:
    return folder / f"neighbors-{shard:05d}.npy"


def scores_file(folder: Path, shard: int) -> Path:
    return folder / f"scores-{shard:05d}.npy"


def lists_record(folder: Path, shard: int) -> Path:
    return folder / f"lists-{shard:05d}.json"


def save_lists(
    folder: Path, shard: int, neighbors: Int64[np.ndarray, "n kept"], scores: Float32[np.ndarray, "n kept"]
) -> None:
    names = neighbors_file(folder, shard).name, scores_file(folder, shard).name
    save_arrays(lists_record(folder, shard), dict(zip(names, (neighbors, scores), strict=True)))


def list_settings(config: RetrievalConfig) -> dict[str, Any]:
    """The part of the config that decides the lists, as JSON gives it back."""
    values = {name: getattr(config, name) for name in LIST_FIELDS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def datastore_tasks(config: RetrievalConfig, corpus: PreparedCorpus, train_split: str) -> tuple[str, ...]:
    """The tasks whose training documents can be neighbors, in the order of the manifest.

    Raises:
      UserError: if one that the config names is not in the corpus, or none of them has documents.
    """
    tasks = corpus.manifest["tasks"]
    for name in config.datastore_tasks:
        if name not in tasks:
            raise UserError(f"config.retrieval.datastore_tasks names {name!r}: the corpus has {', '.join(tasks)}")
    wanted = config.datastore_tasks or tuple(tasks)
    found = tuple(
        name for name in tasks if name in wanted and tasks[name]["splits"].get(train_split, {}).get("num_documents")
    )
    if not found:
        raise UserError(
            f"the datastore is empty: {', '.join(wanted)} of {corpus.path} have no documents in {train_split!r}; "
            "name other tasks in config.retrieval.datastore_tasks"
        )
    return found


class DatastoreDocuments:
    """The documents that can be neighbors, by datastore index."""

    def __init__(self, corpus: PreparedCorpus, tasks: tuple[str, ...], train_split: str) -> None:
        self.tasks = tasks
        self._splits = {task: corpus.task_split(task, train_split) for task in tasks}
        self._first = list(accumulate((split.num_documents for split in self._splits.values()), initial=0))

    def __len__(self) -> int:
        return self._first[-1]

    @cached_property
    def lengths(self) -> Int[np.ndarray, "documents"]:
        """Tokens of each document, int32."""
        return np.concatenate([split.lengths for split in self._splits.values()])

    def first_index(self, task: str) -> int | None:
        """The index of a task's first document; None if the task is not in the datastore."""
        return self._first[self.tasks.index(task)] if task in self.tasks else None

    def groups(self, task: str, documents: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n 2"]:
        """Where the groups of documents of a task begin and end, by datastore index (alternatives.py)."""
        found, first = self._splits[task].alternatives, self.first_index(task) or 0
        if found is None:
            return np.stack([documents, documents + 1], axis=1) + first
        number = np.searchsorted(found.starts, documents, "right")
        return np.stack([found.starts[number - 1], found.starts[number]], axis=1) + first

    def origin(self, index: int) -> tuple[str, int]:
        """The task of a document, and its index there."""
        task = bisect_right(self._first, index) - 1
        return self.tasks[task], int(index - self._first[task])

    def stored(self, index: int) -> UInt[np.ndarray, "n"]:
        """The tokens of one document in the type of the file, not copied."""
        task, number = self.origin(index)
        return self._splits[task].stored(number)

    def document(self, index: int) -> Int32[np.ndarray, "n"]:
        return self.stored(index).astype(np.int32)


class NeighborLists:
    """The neighbor lists of a corpus, opened for reading."""

    def __init__(self, corpus: PreparedCorpus, manifest: Mapping[str, Any], train_split: str) -> None:
        self._corpus, self.manifest = corpus, manifest
        self._opened: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        self.documents = DatastoreDocuments(corpus, tuple(manifest["datastore"]), train_split)

    @classmethod
    def open(cls, corpus: PreparedCorpus, config: RetrievalConfig, train_split: str) -> NeighborLists:
        """Opens CORPUS/retrieval; a `UserError` if it is absent, of other documents or of other settings."""
        folder = corpus.path / "retrieval"
        if not (folder / "manifest.json").exists():
            fix = "with this config, or set config.retrieval.enabled to False"
            raise UserError(
                f"no neighbors at {folder}: run `cm3leon prepare` "
                + (fix if config.enabled else "with --config.retrieval.enabled=True")
            )
        manifest = read_neighbors_manifest(folder)
        check_same_settings(folder, manifest, list_settings(config), corpus)
        return cls(corpus, manifest, train_split)

    @property
    def fingerprint(self) -> str:
        """Equal for lists of the same encoder, documents and settings; stored in every checkpoint."""
        return self.manifest["fingerprint"]

    def of_split(self, task: str, split: str) -> tuple[Int64[np.ndarray, "n kept"], Float32[np.ndarray, "n kept"]]:
        """Neighbors and scores of all documents of a task and split, checked when they are first opened."""
        if (task, split) not in self._opened:
            self._opened[task, split] = self._open(task, split)
        return self._opened[task, split]

    def _open(self, task: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        folder = self._corpus.path / "retrieval" / task / split
        fix = "delete that file and run `cm3leon prepare` again, which writes it again"
        entry = self.manifest["neighbors"].get(f"{task}/{split}", {"shards": []})
        num_documents = [
            shard["num_documents"] for shard in self._corpus.manifest["tasks"][task]["splits"][split]["shards"]
        ]
        num_kept = sum(self.manifest["settings"][name] for name in ("num_by_text", "num_by_image"))
        if len(entry["shards"]) != len(num_documents):
            raise UserError(f"{folder.parent.parent / 'manifest.json'} does not tell of the lists in {folder}: {fix}")
        neighbors: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        for shard, checksums in enumerate(entry["shards"]):
            for file, found in ((neighbors_file(folder, shard), neighbors), (scores_file(folder, shard), scores)):
                found.append(open_array(file, checksums.get(file.name, 0), fix))
                if found[-1].shape != (num_documents[shard], num_kept):
                    raise UserError(f"{file} does not fit its documents: {fix}")
            if neighbors[-1].size and not (neighbors[-1].min() >= NONE and neighbors[-1].max() < len(self.documents)):
                raise UserError(f"{neighbors_file(folder, shard)} names documents that are not there: {fix}")
        # One shard, the usual case, stays on disk.
        return (neighbors[0], scores[0]) if len(neighbors) == 1 else (np.concatenate(neighbors), np.concatenate(scores))


def read_neighbors_manifest(folder: Path) -> dict[str, Any]:
    """Reads CORPUS/retrieval/manifest.json; a `UserError` says if it is missing, of another version, or damaged."""
    file, what = folder / "manifest.json", "the manifest of the neighbors"
    fix = f"delete {folder} and run `cm3leon prepare` again"
    check_format(read_object(file, what), RETRIEVAL_FORMAT, f"the folder {folder}", fix)
    return read_record(file, what, NeighborsManifest, fix, sealed=True)


def check_same_settings(
    folder: Path, manifest: Mapping[str, Any], settings: Mapping[str, Any], corpus: PreparedCorpus
) -> None:
    """Refuses neighbors of another format, of other documents, or found with other settings."""
    fix = f"delete {folder} and run `cm3leon prepare` again"
    check_format(manifest, RETRIEVAL_FORMAT, f"the folder {folder}", fix)
    if manifest.get("corpus") != documents_identity(corpus):
        raise UserError(f"the neighbors at {folder} were found for another corpus than the one around them: {fix}")
    stored = manifest["settings"]
    for name, value in settings.items():
        if stored.get(name) != value:
            raise UserError(
                f"the neighbors at {folder} were found with config.retrieval.{name} = "
                f"{stored.get(name)!r}, now it is {value!r}: {fix}, or set it back"
            )


def documents_identity(corpus: PreparedCorpus) -> dict[str, Any]:
    """What tells whether the documents are the same: who tokenized them, how many there are, and their checksums."""
    manifest = corpus.manifest
    tasks = {
        name: {
            split: [found["num_documents"], found["num_tokens"], found["num_shards"], _shards_checksum(found)]
            for split, found in task["splits"].items()
        }
        for name, task in manifest["tasks"].items()
    }
    return {"tasks": tasks, "image_tokenizer": manifest["image_tokenizer"].get("fingerprint")}


def _shards_checksum(entry: Mapping[str, Any]) -> int:
    return zlib.crc32(np.array([[shard["tokens"], shard["offsets"]] for shard in entry["shards"]], "<u4").tobytes())


def sample_neighbors(
    kept: Int64[np.ndarray, "n kept"], config: RetrievalConfig, *key: int | np.ndarray
) -> Int64[np.ndarray, "n retrieved"]:
    """Samples which of the kept neighbors precede each document, and in which order; -1 where there is none.

    They are `num_retrieved` (arXiv 2309.02591, section 2.2: 3 of the 4), or 0 to `num_retrieved` (arXiv 2211.12561).
    Array parts of the key have one entry per document.
    """
    columns = [part[:, None] if isinstance(part, np.ndarray) else part for part in key]
    lottery = counter_random.uniform(*columns, Stream.NEIGHBOR_ORDER, np.arange(kept.shape[1]))
    order = np.argsort(np.where(kept == NONE, np.inf, lottery), axis=1, kind="stable")[:, : config.num_retrieved]
    sampled = np.take_along_axis(kept, order, axis=1)
    if config.sampling == "uniform":
        counts = np.floor(counter_random.uniform(*key, Stream.NEIGHBOR_COUNT) * (config.num_retrieved + 1))
        sampled = np.where(np.arange(sampled.shape[1]) < np.reshape(counts, (-1, 1)), sampled, NONE)
    return sampled.astype(np.int64)
