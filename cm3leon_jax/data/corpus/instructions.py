"""Where the fields of instructions are among the tokens of a shard, so that batches can put them into other wordings.

    CORPUS/TASK/SPLIT/templates-00000.npy   int32 [documents, 3]: template (-1: none), number of fields, tokens
    CORPUS/TASK/SPLIT/fields-00000.npy      int32 [fields, 2]: where each field begins in its document, and its length

The tokens of an instruction are its document in the first wording of its template, then the fields that only other
wordings have. Shards without instructions lack these files.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, Int64, Integer

from cm3leon_jax.data.corpus.array_files import open_array, save_array
from cm3leon_jax.data.corpus.manifest import InstructionFiles
from cm3leon_jax.data.templates.tokenized import TokenizedTemplate
from cm3leon_jax.errors import UserError


def templates_file(folder: Path, shard: int) -> Path:
    return folder / f"templates-{shard:05d}.npy"


def fields_file(folder: Path, shard: int) -> Path:
    return folder / f"fields-{shard:05d}.npy"


@dataclass(frozen=True)
class StoredInstruction:
    """An instruction as a shard holds it."""

    template: str
    tokens: Int32[np.ndarray, "n"]
    # Of them, the document in its first wording.
    length: int
    # Start and length of each field.
    fields: list[tuple[int, int]]


def to_be_stored(template: TokenizedTemplate, values: Sequence[Int[np.ndarray, "_"]]) -> StoredInstruction:
    """The tokens of an example from the ids of its fields."""
    first = template.assemble(values)
    parts, length = [first.tokens], len(first.tokens)
    fields = []
    for number, value in enumerate(values):
        if number in first.fields:
            start, stop = first.fields[number]
            fields.append((start, stop - start))
        else:
            parts.append(np.asarray(value, np.int32))
            fields.append((length, len(value)))
            length += len(value)
    return StoredInstruction(template.name, np.concatenate(parts), len(first.tokens), fields)


class InstructionWriter:
    """The templates and fields of a shard while it is written."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._documents, self._fields = array("i"), array("i")

    def add(self, length: int, instruction: StoredInstruction | None) -> None:
        """Takes the next document of the shard, of so many tokens."""
        if instruction is None:
            self._documents.extend((-1, 0, length))
            return
        number = self._names.setdefault(instruction.template, len(self._names))
        self._documents.extend((number, len(instruction.fields), instruction.length))
        for start, of_field in instruction.fields:
            self._fields.extend((start, of_field))

    def close(self, folder: Path, shard: int) -> InstructionFiles | None:
        """Writes the files of a shard, where there are instructions in it; returns what they hold."""
        if not self._names:
            return None
        documents = np.array(self._documents, "<i4").reshape(-1, 3)
        fields = np.array(self._fields, "<i4").reshape(-1, 2)
        return {
            "names": list(self._names),
            "templates": save_array(templates_file(folder, shard), documents),
            "fields": save_array(fields_file(folder, shard), fields),
        }


class InstructionShard:
    """The templates and fields of one shard, opened for reading."""

    def __init__(self, folder: Path, shard: int, entry: InstructionFiles, num_documents: int, fix: str) -> None:
        self.names = tuple(entry["names"])
        documents = np.asarray(open_array(templates_file(folder, shard), entry["templates"], fix))
        self._fields = np.asarray(open_array(fields_file(folder, shard), entry["fields"], fix))
        fits = documents.shape == (num_documents, 3) and documents.dtype == self._fields.dtype == np.int32
        if not fits or documents[:, 1].sum() != len(self._fields):
            raise UserError(f"{templates_file(folder, shard)} does not fit its shard: {fix}")
        self._documents = documents

    @cached_property
    def first_field(self) -> Int64[np.ndarray, "documents"]:
        """The number of each document's first field."""
        counts = self._documents[:, 1].astype(np.int64)
        return np.cumsum(counts) - counts

    @property
    def templates(self) -> Int32[np.ndarray, "documents"]:
        """The template of each document, as its number in `names`; -1 of one without."""
        return self._documents[:, 0]

    @property
    def lengths(self) -> Int32[np.ndarray, "documents"]:
        """Tokens of each document in its first wording."""
        return self._documents[:, 2]

    @property
    def num_fields(self) -> Int32[np.ndarray, "documents"]:
        return self._documents[:, 1]

    @property
    def field_lengths(self) -> Int32[np.ndarray, "fields"]:
        return self._fields[:, 1]

    def values(self, document: int, tokens: Integer[np.ndarray, "n"]) -> list[Integer[np.ndarray, "_"]]:
        """The ids of the fields of a document with these tokens."""
        first = int(self.first_field[document])
        found = self._fields[first : first + int(self._documents[document, 1])].tolist()
        return [tokens[start : start + length] for start, length in found]


@dataclass(frozen=True)
class Instructions:
    """The templates of all documents of a split, and the lengths of their fields."""

    names: tuple[str, ...]
    # The template of each document, as its number in `names`; -1 of one without.
    templates: Int32[np.ndarray, "documents"]
    first_field: Int64[np.ndarray, "documents"]
    num_fields: Int32[np.ndarray, "documents"]
    field_lengths: Int32[np.ndarray, "fields"]

    @classmethod
    def joined(cls, shards: Sequence[tuple[InstructionShard | None, int]]) -> Instructions:
        """Those of shards of so many documents, one after the other."""
        names = tuple(dict.fromkeys(name for shard, _ in shards if shard for name in shard.names))
        templates, num_fields, field_lengths = [], [], []
        for shard, num_documents in shards:
            if shard is None:
                templates.append(np.full(num_documents, -1, np.int32))
                num_fields.append(np.zeros(num_documents, np.int32))
                continue
            numbers = np.array([*(names.index(name) for name in shard.names), -1], np.int32)
            templates.append(numbers[shard.templates])
            num_fields.append(shard.num_fields)
            field_lengths.append(shard.field_lengths)
        counts = np.concatenate(num_fields)
        first = np.cumsum(counts, dtype=np.int64) - counts
        return cls(names, np.concatenate(templates), first, counts, np.concatenate(field_lengths))
