"""Writes one shard of a prepared corpus; its images are encoded many at a time."""

from __future__ import annotations

import zlib
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cm3leon_jax.data.corpus.alternatives import groups_file
from cm3leon_jax.data.corpus.array_files import save_array
from cm3leon_jax.data.corpus.document_tokenizer import DecodedDocument, DocumentTokenizer
from cm3leon_jax.data.corpus.instructions import InstructionWriter, StoredInstruction
from cm3leon_jax.data.corpus.manifest import ShardFiles, ShardRecord, SkippedCounts
from cm3leon_jax.data.corpus.prepared import checksums_file, offsets_file, tokens_file
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.files import atomic_write
from cm3leon_jax.images import encode_png
from cm3leon_jax.records import read_record, write_record

_COUNTED = ("num_examples", "num_documents", "num_images", "num_tokens", "num_text_tokens")
# Skipped documents that are listed one by one; all of them are counted.
NUM_LISTED = 1000


def shard_metadata_file(folder: Path, shard: int) -> Path:
    """The record of a complete shard."""
    return folder / f"shard-{shard:05d}.json"


def read_shard_record(file: Path) -> dict[str, Any]:
    fix = "delete it and run `cm3leon prepare` again, which writes that shard again"
    return read_record(file, "the record of a shard", ShardRecord, fix, sealed=True)


class TokenFile:
    """The tokens of a shard while they are written, with their offsets and checksums: whole at the end, or absent."""

    def __init__(self, folder: Path, number: int, dtype: np.dtype) -> None:
        self._folder, self._number, self._dtype = folder, number, dtype
        self._offsets, self._checksums = array("q", [0]), array("I")
        self._checksum = 0
        self._instructions, self._groups = InstructionWriter(), array("q")
        self._open_files = ExitStack()

    def __enter__(self) -> TokenFile:
        temporary = self._open_files.enter_context(atomic_write(tokens_file(self._folder, self._number)))
        self._file = self._open_files.enter_context(temporary.open("wb"))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open_files.__exit__(*exception)

    def add(
        self, ids: Sequence[int] | Int[np.ndarray, "n"], instruction: StoredInstruction | None = None, group: int = -1
    ) -> None:
        """Takes the tokens of a document; of an instruction, they are its `tokens`. -1 stands for no group."""
        self._groups.append(group)
        self._instructions.add(len(ids), instruction)
        data = np.asarray(ids, self._dtype).tobytes()
        self._file.write(data)
        self._offsets.append(self._offsets[-1] + len(ids))
        self._checksums.append(zlib.crc32(data))
        self._checksum = zlib.crc32(data, self._checksum)

    def close(self) -> ShardFiles:
        """Gives the files their names; returns what they hold."""
        self._open_files.close()
        files: ShardFiles = {
            "num_documents": len(self._checksums),
            "num_tokens": self._offsets[-1],
            "tokens": self._checksum,
            "offsets": save_array(offsets_file(self._folder, self._number), np.array(self._offsets, "<i8")),
            "checksums": save_array(checksums_file(self._folder, self._number), np.array(self._checksums, "<u4")),
        }
        if (instructions := self._instructions.close(self._folder, self._number)) is not None:
            files["instructions"] = instructions
        if (groups := np.array(self._groups, "<i8")).max(initial=-1) >= 0:
            files["groups"] = save_array(groups_file(self._folder, self._number), groups)
        return files


@dataclass
class Reasons:
    """Counts by reason, with the first of them one by one."""

    _counts: Counter[str] = field(default_factory=Counter)
    _first: list[dict[str, Any]] = field(default_factory=list)
    # Of all, those that are no fault, but that the config does not want.
    _num_unwanted: int = 0

    def add(self, reason: str, index: int, where: str, is_fault: bool = True) -> None:
        """Counts one, whose kind is the text before the first colon."""
        self._counts[reason.partition(":")[0]] += 1
        self._num_unwanted += not is_fault
        if len(self._first) < NUM_LISTED:
            self._first.append({"index": index, **({"where": where} if where else {}), "reason": reason})

    def __bool__(self) -> bool:
        return bool(self._counts)

    def entry(self) -> SkippedCounts:
        return {
            "by_reason": dict(sorted(self._counts.items())),
            "num_unwanted": self._num_unwanted,
            "first": self._first,
        }


@dataclass
class ShardWriter:
    """One shard while its documents are written to `file`."""

    folder: Path
    number: int
    file: TokenFile
    tokens: DocumentTokenizer
    # How many of its first images are kept as samples.
    num_samples: int
    _counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(_COUNTED, 0)))
    _skipped: Reasons = field(default_factory=Reasons)
    _omitted: Reasons = field(default_factory=Reasons)
    _documents: deque[DecodedDocument] = field(default_factory=deque)
    # Images to be encoded, and how many times each comes in a row.
    _images: list[np.ndarray] = field(default_factory=list)
    _repeats: list[int] = field(default_factory=list)
    _last_image: np.ndarray | None = None
    _last_codes: np.ndarray | None = None
    # Ids of images whose document still waits for others.
    _codes: deque[np.ndarray] = field(default_factory=deque)

    @property
    def num_tokens(self) -> int:
        return self._counts["num_tokens"]

    def add(self, index: int, document: DecodedDocument | SkippedExample, where: str = "") -> None:
        """Takes one example: a document, which may be cut into several, or one to be counted as skipped."""
        self._counts["num_examples"] += 1
        if isinstance(document, SkippedExample):
            self._skipped.add(document.reason, index, where, document.is_fault)
            return
        for reason in document.omitted:
            self._omitted.add(reason, index, where)
        for part in self.tokens.parts(document):
            self._add(part)

    def _add(self, document: DecodedDocument) -> None:
        for number, image in enumerate(document.images, self._counts["num_images"]):
            if number < self.num_samples:
                with atomic_write(self.folder / "samples" / f"{number:05d}.png") as temporary:
                    temporary.write_bytes(encode_png(image))
        self._counts["num_images"] += len(document.images)
        self._counts["num_documents"] += 1
        self._counts["num_text_tokens"] += sum(len(segment) for segment in document.segments if segment is not None)
        self._counts["num_tokens"] += self.tokens.length(document)
        self._documents.append(document)
        for image in document.images:
            self._queue(image)
        while len(self._images) >= self.tokens.batch_size:
            self._encode(self.tokens.batch_size)
        self._write_ready()

    def close(self, last: bool) -> dict[str, Any]:
        """Writes what waits, gives the files their names, then writes the record that says the shard is complete."""
        if self._images:
            self._encode(len(self._images))
        self._write_ready()
        record = {
            **self._counts,
            "num_image_tokens": self._counts["num_images"] * self.tokens.image_tokenizer.config.image_length,
            "skipped": self._skipped.entry(),
            **({"omitted": self._omitted.entry()} if self._omitted else {}),
            "last": last,
            "files": self.file.close(),
        }
        write_record(shard_metadata_file(self.folder, self.number), record)
        return record

    def _queue(self, image: np.ndarray) -> None:
        """Puts an image in line; one that comes again at once, as with each of its captions, is encoded once."""
        if self._last_image is None or not np.array_equal(image, self._last_image):
            self._images.append(image)
            self._repeats.append(1)
            self._last_image = image
        elif self._images:
            self._repeats[-1] += 1
        else:
            assert self._last_codes is not None
            self._codes.append(self._last_codes)

    def _encode(self, count: int) -> None:
        encoded = self.tokens.encode(self._images[:count])
        for codes, repeats in zip(encoded, self._repeats[:count], strict=True):
            self._codes.extend([codes] * repeats)
        self._last_codes = encoded[-1]
        del self._images[:count], self._repeats[:count]

    def _write_ready(self) -> None:
        while self._documents and len(self._documents[0].images) <= len(self._codes):
            document = self._documents.popleft()
            codes = (self._codes.popleft() for _ in document.images)
            if document.template:
                instruction = self.tokens.instruction(document, codes)
                self.file.add(instruction.tokens, instruction)
            else:
                self.file.add(self.tokens.concatenate(document, codes), group=document.group)
