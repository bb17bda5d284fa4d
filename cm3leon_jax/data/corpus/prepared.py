"""The prepared corpus: flat token shards with offsets, and a manifest that says what they are.

    CORPUS/manifest.json
    CORPUS/TASK/SPLIT/tokens-00000.bin      ids of all documents of the shard, end to end, little-endian
    CORPUS/TASK/SPLIT/offsets-00000.npy     int64 [documents + 1]: where each document starts
    CORPUS/TASK/SPLIT/checksums-00000.npy   uint32 [documents]: CRC-32 of each document's bytes

A document is stored as its segments with `<break>` between them, an instruction in the first wording of its template
(instructions.py says where its fields are). Shards are memory-mapped: a random read costs
microseconds and no memory. Opening a corpus checks its manifest, offsets and checksums, about 1% of its bytes, and all
tokens of a small one; a document is checked the first time it is read.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt

from cm3leon_jax.data.corpus.alternatives import Alternatives, open_groups
from cm3leon_jax.data.corpus.array_files import check_file, open_array
from cm3leon_jax.data.corpus.instructions import Instructions, InstructionShard
from cm3leon_jax.data.corpus.manifest import Manifest, ShardFiles
from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import check_format, read_object
from cm3leon_jax.records import read_record
from cm3leon_jax.storage.mirror import fetch_arrays
from cm3leon_jax.vocabulary import Vocabulary

FORMAT_VERSION = 2

# Bytes of tokens of a task and split that are read at opening, which takes a tenth of a second.
_CHECKED_WHOLE = 1 << 28


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The narrowest little-endian type that holds every id."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def tokens_file(folder: Path, shard: int) -> Path:
    return folder / f"tokens-{shard:05d}.bin"


def offsets_file(folder: Path, shard: int) -> Path:
    return folder / f"offsets-{shard:05d}.npy"


def checksums_file(folder: Path, shard: int) -> Path:
    return folder / f"checksums-{shard:05d}.npy"


def fix_shard(file: Path) -> str:
    """What to do about a damaged file of a shard."""
    return f"delete {file.name} there and run `cm3leon prepare` again, which writes that shard again"


class TaskSplit:
    """The documents of one task and split, by index."""

    def __init__(self, folder: Path, shards: Sequence[ShardFiles], dtype: np.dtype, first_shard: int = 0) -> None:
        self.dtype, self._folder, self._first_shard = dtype, folder, first_shard
        self._offsets, self._tokens, self._checksums = [], [], []
        self._instructions: list[InstructionShard | None] = []
        self._groups = list[np.ndarray]()
        numbers = range(first_shard, first_shard + len(shards))
        fetch_arrays([file(folder, shard) for shard in numbers for file in (tokens_file, offsets_file, checksums_file)])
        for shard, entry in enumerate(shards, first_shard):
            self._instructions.append(_instructions(folder, shard, entry))
            self._groups.append(_groups(folder, shard, entry))
            self._offsets.append(_offsets(offsets_file(folder, shard), entry))
            self._checksums.append(_checksums(checksums_file(folder, shard), entry))
            self._tokens.append(_tokens(tokens_file(folder, shard), entry, dtype))
        is_small = sum(tokens.nbytes for tokens in self._tokens) <= _CHECKED_WHOLE
        # A byte per document: whether it was found to be what was written. A check at every read takes a tenth of the
        # time in which a batch is built.
        self._is_checked = [bytearray([is_small]) * len(checksums) for checksums in self._checksums]
        if is_small:
            for shard, entry in enumerate(shards, first_shard):
                check_file(tokens_file(folder, shard), entry["tokens"], fix_shard(tokens_file(folder, shard)))
        self._first_document = list(accumulate((len(offsets) - 1 for offsets in self._offsets), initial=0))

    @property
    def num_documents(self) -> int:
        return self._first_document[-1]

    @cached_property
    def lengths(self) -> Int[np.ndarray, "documents"]:
        """Tokens of each document, int32."""
        lengths = [
            np.diff(offsets).astype(np.int32) if instructions is None else instructions.lengths
            for offsets, instructions in zip(self._offsets, self._instructions, strict=True)
        ]
        return np.concatenate(lengths or [np.zeros(0, np.int32)])

    @cached_property
    def instructions(self) -> Instructions | None:
        """The templates and fields of the documents; None where no document has a template."""
        if not any(self._instructions):
            return None
        num_documents = [len(checksums) for checksums in self._checksums]
        return Instructions.joined(list(zip(self._instructions, num_documents, strict=True)))

    @cached_property
    def alternatives(self) -> Alternatives | None:
        """Which documents an epoch takes; None where it takes all."""
        found = Alternatives.joined(self._groups) if self._groups else None
        return found if found is not None and len(found) < self.num_documents else None

    @property
    def num_in_epoch(self) -> int:
        """How many documents an epoch takes."""
        return self.num_documents if self.alternatives is None else len(self.alternatives)

    def stored(self, index: int, recheck: bool = False) -> UInt[np.ndarray, "n"]:
        """The tokens of one document in the type of the file, not copied.

        They are checked when they are read first, with `recheck` every time.

        Raises:
          UserError: if they are not those that were written.
        """
        shard, row = self._shard_of(index)
        tokens, instructions = self._stored(shard, row, recheck), self._instructions[shard]
        return tokens if instructions is None else tokens[: int(instructions.lengths[row])]

    def template(self, index: int) -> str:
        """The template of a document; empty of one without."""
        stored = self.instructions
        number = -1 if stored is None else int(stored.templates[index])
        return "" if stored is None or number < 0 else stored.names[number]

    def fields(self, index: int) -> list[UInt[np.ndarray, "_"]]:
        """The ids of the stored fields of an instruction, not copied; nothing of other documents."""
        shard, row = self._shard_of(index)
        instructions = self._instructions[shard]
        return [] if instructions is None else instructions.values(row, self._stored(shard, row))

    def _shard_of(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._first_document, index) - 1
        return shard, index - self._first_document[shard]

    def _stored(self, shard: int, row: int, recheck: bool = False) -> UInt[np.ndarray, "n"]:
        start, stop = self._offsets[shard][row : row + 2].tolist()
        tokens = self._tokens[shard][start:stop]
        if recheck or not self._is_checked[shard][row]:
            if zlib.crc32(tokens) != self._checksums[shard][row]:
                file = tokens_file(self._folder, self._first_shard + shard)
                raise UserError(f"{file} is damaged: document {row} of it is not what was written; {fix_shard(file)}")
            self._is_checked[shard][row] = True
        return tokens

    def document(self, index: int) -> Int32[np.ndarray, "n"]:
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
        manifest = read_manifest(path)
        if vocabulary is not None:
            vocabulary.check_fingerprint(manifest["vocabulary"]["fingerprint"], f"the corpus {path}")
        return cls(path, manifest)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides every batch besides the config: rates, numbers of documents, and both tokenizers."""
        tasks = {
            name: {"rate": task["rate"]}
            | {split: found["num_documents"] for split, found in task["splits"].items()}
            # Corpora without groups have the identity that they had before there were any.
            | {f"{split} groups": True for split, found in task["splits"].items() if _has_groups(found["shards"])}
            for name, task in self.manifest["tasks"].items()
        }
        return {"tasks": tasks, "image_tokenizer": self.manifest["image_tokenizer"].get("fingerprint")}

    def templates(self) -> dict[str, str]:
        """The templates of the instructions in it, each with the fingerprint of its wordings as they are now."""
        shards = [
            shard
            for task in self.manifest["tasks"].values()
            for split in task["splits"].values()
            for shard in split["shards"]
        ]
        names = sorted({name for shard in shards if "instructions" in shard for name in shard["instructions"]["names"]})
        return {name: TEMPLATES.load(name).fingerprint for name in names}

    @property
    def image_length(self) -> int:
        return self.manifest["image_tokenizer"]["image_length"]

    def rates(self) -> dict[str, float]:
        """The mixture's rate of each task, in the order of the manifest."""
        return {name: task["rate"] for name, task in self.manifest["tasks"].items()}

    def task_split(self, task: str, split: str) -> TaskSplit:
        splits = self.manifest["tasks"][task]["splits"]
        if split not in splits:
            raise UserError(f"task {task} of the corpus {self.path} has no split {split!r}: it has {', '.join(splits)}")
        dtype = token_dtype(self.manifest["vocabulary"]["size"])
        return TaskSplit(self.path / task / split, splits[split]["shards"], dtype)

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


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads CORPUS/manifest.json; a `UserError` says if it is missing, of another version, or damaged."""
    file, what = path / "manifest.json", "the corpus manifest"
    again = "delete that folder and run `cm3leon prepare` again"
    check_format(read_object(file, what), FORMAT_VERSION, f"the corpus {path}", again)
    fix = "delete it and run `cm3leon prepare` again, which keeps the shards"
    manifest = read_record(file, what, Manifest, fix, sealed=True)
    for name, task in manifest["tasks"].items():
        for split, entry in task["splits"].items():
            if len(entry["shards"]) != entry["num_shards"]:
                raise UserError(f"{what} is damaged: {file}: {name}.{split} does not list its shards; {fix}")
    return manifest


def _instructions(folder: Path, shard: int, entry: ShardFiles) -> InstructionShard | None:
    if "instructions" not in entry:
        return None
    fix = fix_shard(tokens_file(folder, shard))
    return InstructionShard(folder, shard, entry["instructions"], entry["num_documents"], fix)


def _groups(folder: Path, shard: int, entry: ShardFiles) -> np.ndarray:
    if "groups" not in entry:
        return np.full(entry["num_documents"], -1, np.int64)
    fix = fix_shard(tokens_file(folder, shard))
    return open_groups(folder, shard, entry["groups"], entry["num_documents"], fix)


def _has_groups(shards: Sequence[ShardFiles]) -> bool:
    return any("groups" in shard for shard in shards)


# Plain arrays over the mapped files: a slice of np.memmap costs ten times as much.
def _offsets(file: Path, entry: ShardFiles) -> np.ndarray:
    offsets = np.asarray(open_array(file, entry["offsets"], fix_shard(file)))
    fits = offsets.shape == (entry["num_documents"] + 1,) and offsets.dtype == np.int64
    if not fits or offsets[0] != 0 or offsets[-1] != entry["num_tokens"] or (np.diff(offsets) < 0).any():
        raise UserError(f"{file} does not fit its shard: {fix_shard(file)}")
    return offsets


def _checksums(file: Path, entry: ShardFiles) -> np.ndarray:
    checksums = np.asarray(open_array(file, entry["checksums"], fix_shard(file)))
    if checksums.shape != (entry["num_documents"],) or checksums.dtype != np.uint32:
        raise UserError(f"{file} does not fit its shard: {fix_shard(file)}")
    return checksums


def _tokens(file: Path, entry: ShardFiles, dtype: np.dtype) -> np.ndarray:
    try:
        size = file.stat().st_size
        if size == entry["num_tokens"] * dtype.itemsize:
            # An empty file cannot be mapped.
            return np.asarray(np.memmap(file, dtype, mode="r")) if size else np.zeros(0, dtype)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): {fix_shard(file)}") from None
    raise UserError(f"{file} is damaged: it has {size:,} bytes for {entry['num_tokens']:,} tokens; {fix_shard(file)}")
