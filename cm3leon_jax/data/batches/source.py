"""The batch at step t as a pure function of (corpus, seed, t): shuffled, mixed, with neighbors, masked, packed.

Nothing here remembers where it was, so a run resumes exactly, at any step, after any number of epochs, and on any
number of processes: each builds the rows of the same global batch that its devices hold.
"""

from __future__ import annotations

import dataclasses
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int, Int32, Int64

from cm3leon_jax import counter_random
from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.data.batches.config import BatchConfig, ObjectiveConfig
from cm3leon_jax.data.batches.objective import (
    SENTINELS_PER_SPAN,
    SpanMasks,
    apply_span_masks,
    positions_in_image,
    sample_span_masks,
    sample_spans,
    segments,
    segments_between,
    separator_indices,
)
from cm3leon_jax.data.batches.order import SHUFFLE_BLOCK, DocumentOrder, DocumentReferences
from cm3leon_jax.data.batches.packing import best_fit_rows, stream_rows
from cm3leon_jax.data.corpus.neighbors import NONE, NeighborLists, draw_neighbors
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.vocabulary import Vocabulary

_MASKS, _ROW_ORDER, _NEIGHBORS = 21, 22, 23

# `</s>` in front of a document and behind it.
NUM_ENDS = 2

# Rows that are assembled together: fewer calls than one by one, and their tokens still fit a core's cache.
_ROWS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Where training finds the documents that stand in front of a document, and how many it draws."""

    lists: NeighborLists
    config: RetrievalConfig


def open_retrieval(corpus: PreparedCorpus, config: RetrievalConfig, train_split: str) -> Retrieval | None:
    """The neighbor lists of a corpus where the config asks for retrieval; None where it does not."""
    return Retrieval(NeighborLists.open(corpus, config, train_split), config) if config.enabled else None


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """The documents of a window of the training sequence, and what becomes of them."""

    references: DocumentReferences
    # Places in the memory of the neighbors that stand in front of each; -1 behind the last.
    neighbors: Int64[np.ndarray, "n drawn"]
    # Masks of each document (whole packing), or of each row (stream).
    masks: SpanMasks
    # What each row holds: documents (whole packing), or pieces of them (stream).
    rows: list


def leading_segments(tokens: Int[np.ndarray, "n"], longest: int, vocabulary: Vocabulary) -> Int[np.ndarray, "m"]:
    """The whole segments of a document that fit into `longest` tokens; never a part of an image.

    A text that alone is too long is cut; an image that alone is too long leaves nothing.
    """
    if len(tokens) <= longest:
        return tokens
    fitting = [stop for _, stop in segments(tokens, vocabulary) if stop <= longest]
    if fitting:
        return tokens[: fitting[-1]]
    return tokens[:0] if vocabulary.is_image(tokens[:longest]).any() else tokens[:longest]


class Stretch(NamedTuple):
    """Tokens that are masked by themselves: a document (whole packing) or a row (stream)."""

    row: int
    # Where they lie among the tokens of all rows.
    start: int
    stop: int
    # Which of a plan's draws masks them.
    masks: SpanMasks
    draw: int


@dataclasses.dataclass(frozen=True)
class Line:
    """Rows before they are masked, end to end."""

    # Documents as they are stored, and the marks between them.
    parts: list[np.ndarray] = dataclasses.field(default_factory=list)
    stretches: list[Stretch] = dataclasses.field(default_factory=list)


class BatchSource:
    """Random access to the batches of a corpus: `source[t]` is the global batch t, or some rows of it."""

    def __init__(
        self,
        corpus: PreparedCorpus,
        vocabulary: Vocabulary,
        objective: ObjectiveConfig,
        batch: BatchConfig,
        split: str = "train",
        rows: Sequence[int] | None = None,
        start_block: tuple[int, int] = (0, 0),
        retrieval: Retrieval | None = None,
        left_out: Sequence[tuple[int, int]] = (),
    ) -> None:
        """
        Args:
          rows: which rows of each batch are built; None: all.
          start_block: a window and the number of rows before it, as `block_at_step` says for a step: rows behind it are
            then found without planning all windows before. It changes how long a look-up takes, never its result.
          retrieval: gives every document its neighbors; None leaves documents alone.
          left_out: first and end of stretches of the batches that there would be without it, in their order; the
            others move up.
        """
        self._vocabulary, self._objective, self._config = vocabulary, objective, batch
        self._splits = corpus.splits(split)
        self._retrieval = retrieval
        if retrieval is not None:
            self._kept = {task: retrieval.lists.of_split(task, split)[0] for task in self._splits}
        sizes = {task: documents.num_documents for task, documents in self._splits.items()}
        self._order = DocumentOrder(sizes, corpus.rates(), batch.seed)
        # Longest document that still fits a row with its ends; a row of L targets has L + 1 tokens.
        self._longest = batch.sequence_length + 1 - NUM_ENDS
        if batch.packing == "whole" and self._longest < 1:
            raise UserError(f"config.batch.sequence_length {batch.sequence_length} holds no document")
        dtype = next(iter(self._splits.values())).dtype
        self._end, self._break = np.array([vocabulary.end], dtype), np.array([vocabulary.break_], dtype)
        self._start_block, rows_before = start_block
        self._rows_before = [rows_before]
        # Grain builds batches on a thread of its own.
        self._lock = threading.Lock()
        self._rows = range(batch.batch_size) if rows is None else rows
        self._left_out = left_out
        # The plan of a window is used by many consecutive rows.
        self._plan = lru_cache(maxsize=4)(self._plan_block)

    def __len__(self) -> int:
        return 1 << 62

    def batch_of(self, step: int) -> int:
        """Which batch `source[step]` is, among those that there would be if none were left out."""
        batch = step
        for first, stop in self._left_out:
            if batch >= first:
                batch += stop - first
        return batch

    def __getitem__(self, step: int) -> Batch:
        first_row = self.batch_of(step) * self._config.batch_size
        rows = [first_row + row for row in self._rows]
        batch = Batch.padding(len(rows), self._config.sequence_length, self._vocabulary.pad)
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            self._fill(batch, first, rows[first : first + _ROWS_AT_ONCE])
        return batch

    def _plan_block(self, window: int) -> BlockPlan:
        references = self._order.window(window)
        lengths = np.zeros(SHUFFLE_BLOCK, np.int64)
        for task, documents in enumerate(self._splits.values()):
            mine = references.task == task
            lengths[mine] = documents.lengths[references.document[mine]]
        neighbors, added = self._draw_neighbors(references, lengths)
        lengths += added
        key: tuple[int | np.ndarray, ...]
        if self._config.packing == "stream":
            rows: list = stream_rows(lengths + NUM_ENDS, self._config.sequence_length + 1)
            key = (window, np.arange(len(rows)))
        else:
            # A document is masked in a new way every time it comes.
            key = (references.task, references.epoch, references.document)
        masks = sample_span_masks(self._objective, self._vocabulary.num_masks, self._config.seed, _MASKS, *key)
        if self._config.packing == "whole":
            # A document that fills its row leaves no room for marks, and then has no masks.
            room = np.maximum(self._longest - lengths, 0) // SENTINELS_PER_SPAN
            masks = dataclasses.replace(masks, counts=np.minimum(masks.counts, room))
            used = np.minimum(lengths, self._longest) + NUM_ENDS + SENTINELS_PER_SPAN * masks.counts - 1
            rows = best_fit_rows(used, self._config.sequence_length)
        mixed = counter_random.permutation_at(np.arange(len(rows)), len(rows), self._config.seed, _ROW_ORDER, window)
        return BlockPlan(references, neighbors, masks, [rows[i] for i in mixed.tolist()])

    def _draw_neighbors(
        self, references: DocumentReferences, lengths: Int64[np.ndarray, "n"]
    ) -> tuple[Int64[np.ndarray, "n drawn"], Int64[np.ndarray, "n"]]:
        """The neighbors of a window's documents, and how many tokens they add to each; new ones in every epoch."""
        if self._retrieval is None:
            return np.zeros((len(lengths), 0), np.int64), np.zeros(len(lengths), np.int64)
        memory, config = self._retrieval.lists.memory, self._retrieval.config
        kept = np.full((len(lengths), config.num_kept), NONE, np.int64)
        for task, name in enumerate(self._splits):
            mine = references.task == task
            kept[mine] = self._kept[name][references.document[mine]]
        key = (self._config.seed, _NEIGHBORS, references.task, references.epoch, references.document)
        drawn = draw_neighbors(kept, config, *key)
        # Each with the `<break>` behind it.
        added = np.cumsum(np.where(drawn == NONE, 0, memory.lengths[drawn] + 1), axis=1, dtype=np.int64)
        if self._config.packing == "whole":
            # The last ones give way where all together do not fit.
            drawn = np.where(lengths[:, None] + added <= self._longest, drawn, NONE)
            added = np.where(drawn == NONE, 0, added)
        return drawn, added.max(axis=1, initial=0)

    def _locate(self, row: int) -> tuple[int, int]:
        """The window of a row, and its place there."""
        with self._lock:
            if row < self._rows_before[0]:
                self._start_block, self._rows_before = 0, [0]
            while self._rows_before[-1] <= row:
                window = self._start_block + len(self._rows_before) - 1
                self._rows_before.append(self._rows_before[-1] + len(self._plan(window).rows))
            known = bisect_right(self._rows_before, row) - 1
            return self._start_block + known, row - self._rows_before[known]

    def block_at_step(self, step: int) -> tuple[int, int]:
        """The window in which a step begins, and the number of rows before that window."""
        row = self.batch_of(step) * self._config.batch_size
        window, place = self._locate(row)
        return window, row - place

    def _document(self, plan: BlockPlan, index: int) -> list[np.ndarray]:
        """The parts of a document between its ends: its neighbors, each followed by `<break>`, and its own tokens."""
        task = self._order.tasks[int(plan.references.task[index])]
        own = self._splits[task].stored(int(plan.references.document[index]))
        if self._retrieval is None:
            return [own]
        memory = self._retrieval.lists.memory
        neighbors = [memory.stored(place) for place in plan.neighbors[index].tolist() if place != NONE]
        return [part for neighbor in neighbors for part in (neighbor, self._break)] + [own]

    def _add_documents(self, line: Line, length: int, row: int, plan: BlockPlan, place: int) -> int:
        """Adds the whole documents of a row to a line of `length` tokens, and says how long it is then."""
        for index in plan.rows[place]:
            parts = self._document(plan, index)
            # The plan gives neighbors to no document that is too long alone.
            if len(parts[-1]) > self._longest:
                parts = [leading_segments(parts[-1].astype(np.int32), self._longest, self._vocabulary)]
            added = sum(map(len, parts))
            if added:
                line.parts.extend((self._end, *parts, self._end))
                stop = length + added + NUM_ENDS
                line.stretches.append(Stretch(row, length, stop, plan.masks, index))
                length = stop
        return length

    def _add_stream(self, line: Line, length: int, row: int, plan: BlockPlan, place: int) -> int:
        """Adds the part of the stream that is a row to a line of `length` tokens, and says how long it is then."""
        pieces = plan.rows[place]
        parts = [part for index, _, _ in pieces for part in (self._end, *self._document(plan, index), self._end)]
        # Only whole parts are left out in front: where an image is cut, its places count from its beginning.
        left_out = pieces[0][1]
        while left_out >= len(parts[0]):
            left_out -= len(parts.pop(0))
        line.parts.extend(parts)
        start = length + left_out
        stop = start + sum(stop - start for _, start, stop in pieces)
        line.stretches.append(Stretch(row, start, stop, plan.masks, place))
        return length + sum(map(len, parts))

    def _fill(self, batch: Batch, first: int, rows: Sequence[int]) -> None:
        """Builds rows of the training sequence as rows `first` .. of a batch that is empty there."""
        add = self._add_stream if self._config.packing == "stream" else self._add_documents
        line, length = Line(), 0
        for row, wanted in enumerate(rows, start=first):
            window, place = self._locate(wanted)
            length = add(line, length, row, self._plan(window), place)
        if not line.stretches:
            return
        tokens = np.concatenate(line.parts, dtype=np.int32)
        positions = positions_in_image(tokens, self._vocabulary)
        separators = separator_indices(tokens, self._vocabulary)
        # Made here, and started anew for every stretch, so that threads share nothing.
        rng = counter_random.generator(0)
        filled = [0] * (first + len(rows))
        for row, start, stop, masks, draw in line.stretches:
            sequence, its_positions = tokens[start:stop], positions[start:stop]
            if count := int(masks.counts[draw]):
                counter_random.restart(rng, masks.keys[draw])
                parts = segments_between(separators, start, stop)
                spans = sample_spans(stop - start, parts, count, bool(masks.is_whole[draw]), rng)
                limit = self._config.sequence_length + 1
                sequence, its_positions = apply_span_masks(sequence, its_positions, spans, self._vocabulary, limit)
            filled[row] = write_row(sequence, its_positions, batch, row, filled[row])


def write_row(
    tokens: Int32[np.ndarray, "n"], positions: Int32[np.ndarray, "n"], batch: Batch, row: int, start: int
) -> int:
    """Writes a sequence into a row from `start` on, and says where it ends. Its last token is only a target."""
    stop = start + len(tokens) - 1
    batch.tokens[row, start:stop], batch.targets[row, start:stop] = tokens[:-1], tokens[1:]
    batch.weights[row, start:stop] = 1
    batch.positions[row, start:stop] = np.arange(stop - start, dtype=np.int32)
    batch.document_start[row, start:stop] = start
    batch.image_positions[row, start:stop] = positions[:-1]
    return stop


def iterate(source: BatchSource, first_step: int, num_steps: int, prefetch: int = 4) -> Iterator[Batch]:
    """The batches of steps `first_step` .. `num_steps` - 1, built ahead on a thread by Grain."""
    steps = grain.MapDataset.source(source)[first_step:num_steps]
    # One thread: building a batch is Python, so more threads only fight for the interpreter.
    dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    return iter(dataset)
