"""The prepared corpus: flat token shards with offsets, and a manifest that says what they are.

    CORPUS/manifest.json
    CORPUS/TASK/SPLIT/tokens-00000.bin      ids of all documents of the shard, end to end, little-endian
    CORPUS/TASK/SPLIT/offsets-00000.npy     int64 [documents + 1]: where each document starts

A document is stored as its segments with `<break>` between them; `</s>`, masks and padding are added when a batch is
built.
Shards are memory-mapped: a random read costs microseconds and no memory.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_json
from cm3leon_jax.vocabulary import Vocabulary

FORMAT_VERSION = 1


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The narrowest little-endian type that holds every id."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def tokens_file(folder: Path, shard: int) -> Path:
    """Where a shard's tokens lie."""
    return folder / f"tokens-{shard:05d}.bin"


def offsets_file(folder: Path, shard: int) -> Path:
    """Where a shard's offsets lie."""
    return folder / f"offsets-{shard:05d}.npy"


class TaskSplit:
    """The documents of one task and split, by index."""

    def __init__(self, folder: Path, num_shards: int, dtype: np.dtype) -> None:
        self.dtype = dtype
        try:
            # Plain arrays over the mapped files: a slice of np.memmap costs ten times as much.
            self._offsets = [
                np.asarray(np.load(offsets_file(folder, shard), mmap_mode="r")) for shard in range(num_shards)
            ]
            self._tokens = [self._map(tokens_file(folder, shard), dtype) for shard in range(num_shards)]
        except (OSError, ValueError) as error:
            raise UserError(
                f"the prepared corpus is damaged in {folder} ({error}): run `cm3leon prepare` again"
            ) from None
        for shard, (tokens, offsets) in enumerate(zip(self._tokens, self._offsets, strict=True)):
            if len(tokens) != offsets[-1]:
                raise UserError(
                    f"the prepared corpus is damaged: {tokens_file(folder, shard)} holds {len(tokens)} tokens, "
                    f"its offsets say {offsets[-1]}; delete both files and run `cm3leon prepare` again"
                )
        self._first_document = list(accumulate((len(offsets) - 1 for offsets in self._offsets), initial=0))

    @staticmethod
    def _map(file: Path, dtype: np.dtype) -> np.ndarray:
        # An empty file cannot be mapped.
        return np.asarray(np.memmap(file, dtype, mode="r")) if file.stat().st_size else np.zeros(0, dtype)

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return self._first_document[-1]

    @cached_property
    def lengths(self) -> Int[np.ndarray, "documents"]:
        """Tokens of each document, int32."""
        return np.concatenate(
            [np.diff(offsets).astype(np.int32) for offsets in self._offsets] or [np.zeros(0, np.int32)]
        )

    def stored(self, index: int) -> UInt[np.ndarray, "n"]:
        """The tokens of one document as they lie in the file, not copied."""
        shard = bisect_right(self._first_document, index) - 1
        row = index - self._first_document[shard]
        start, stop = self._offsets[shard][row : row + 2].tolist()
        return self._tokens[shard][start:stop]

    def document(self, index: int) -> Int32[np.ndarray, "n"]:
        """The tokens of one document."""
        return self.stored(index).astype(np.int32)


@dataclass(frozen=True)
class PreparedCorpus:
    """A prepared corpus on disk, opened for reading."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, vocabulary: Vocabulary | None = None) -> PreparedCorpus:
        """Opens `path`; refuses it if it was prepared with a vocabulary other than the one given."""
        path = Path(path)
        if not (path / "manifest.json").exists():
            raise UserError(f"no prepared corpus at {path} (no manifest.json): run `cm3leon prepare` first")
        manifest = read_json(path / "manifest.json", "the corpus manifest")
        if manifest.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"the corpus at {path} has format version {manifest.get('format_version')}, "
                f"this program reads {FORMAT_VERSION}: run `cm3leon prepare` again"
            )
        if vocabulary is not None:
            vocabulary.check_fingerprint(manifest["vocabulary"]["fingerprint"], f"the corpus {path}")
        return cls(path, manifest)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides every batch beside the config: rates, numbers of documents, and both tokenizers."""
        tasks = {
            name: {"rate": task["rate"]} | {split: found["num_documents"] for split, found in task["splits"].items()}
            for name, task in self.manifest["tasks"].items()
        }
        return {"tasks": tasks, "image_tokenizer": self.manifest["image_tokenizer"].get("fingerprint")}

    @property
    def image_length(self) -> int:
        """Image codes of one picture."""
        return self.manifest["image_tokenizer"]["image_length"]

    def rates(self) -> dict[str, float]:
        """The mixture's rate of each task, in the order of the manifest."""
        return {name: task["rate"] for name, task in self.manifest["tasks"].items()}

    def task_split(self, task: str, split: str) -> TaskSplit:
        """The documents of one task and split."""
        splits = self.manifest["tasks"][task]["splits"]
        if split not in splits:
            raise UserError(f"task {task} of the corpus {self.path} has no split {split!r}: it has {', '.join(splits)}")
        dtype = token_dtype(self.manifest["vocabulary"]["size"])
        return TaskSplit(self.path / task / split, splits[split]["num_shards"], dtype)

    def splits(self, split: str) -> dict[str, TaskSplit]:
        """All tasks that have documents in `split`, by name."""
        found = {
            name: self.task_split(name, split)
            for name, task in self.manifest["tasks"].items()
            if task["splits"].get(split, {}).get("num_documents")
        }
        if not found:
            raise UserError(f"the corpus {self.path} has no documents in the split {split!r}")
        return found
