"""Which documents, neighbors and masks each row of the training sequence gets, planned from lengths alone.

The sequence is planned a shuffle block at a time. Any block can be planned alone, so any row can be found without
reading those before it.
"""

from __future__ import annotations

import dataclasses
import threading
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Int64, Integer

from cm3leon_jax import counter_random
from cm3leon_jax.counter_random import Stream
from cm3leon_jax.data.batches.config import BatchConfig, ObjectiveConfig
from cm3leon_jax.data.batches.instructions import InstructionPlan, InstructionPlanner
from cm3leon_jax.data.batches.objective import SENTINELS_PER_SPAN, Span, SpanMasks, role_weights, sample_span_masks
from cm3leon_jax.data.batches.order import SHUFFLE_BLOCK, DocumentOrder, DocumentReferences, sampling_rates
from cm3leon_jax.data.batches.packing import best_fit_rows, concat_then_split_rows
from cm3leon_jax.data.batches.row_fit import NUM_ENDS, longest_document, truncate_document
from cm3leon_jax.data.corpus.neighbors import NONE, NeighborLists, sample_neighbors
from cm3leon_jax.data.corpus.prepared import PreparedCorpus, TaskSplit
from cm3leon_jax.documents import Role
from cm3leon_jax.errors import UserError
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """The neighbor lists of a corpus, and how many neighbors precede a document."""

    lists: NeighborLists
    config: RetrievalConfig


def open_retrieval(corpus: PreparedCorpus, config: RetrievalConfig, train_split: str) -> Retrieval | None:
    """The neighbor lists of a corpus where the config asks for retrieval; None where it does not."""
    return Retrieval(NeighborLists.open(corpus, config, train_split), config) if config.enabled else None


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """The documents of a shuffle block, and the rows they make."""

    references: DocumentReferences
    # Datastore indices of the neighbors that precede each document; -1 after the last.
    neighbors: Int64[np.ndarray, "n retrieved"]
    # Of each document ("best_fit"), or of each row ("concat_then_split").
    masks: SpanMasks
    # How the instructions among the documents are put, if there are any.
    instructions: InstructionPlan | None
    # What each row holds: document indices ("best_fit"), or (document, start, stop) ("concat_then_split").
    rows: list


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Tokens that are masked together: a document ("best_fit") or a row ("concat_then_split")."""

    # As they are stored; tokens start .. stop of them, end to end, are used.
    parts: list[np.ndarray]
    start: int
    stop: int
    # The plan's masks, and which of them.
    masks: SpanMasks
    mask: int
    # The role of the tokens of each part, where the loss asks for them.
    roles: list[Integer[np.ndarray, "_"]] | None = None
    # What is masked, where that is not sampled: as many of these spans as the plan has masks.
    spans: list[Span] | None = None


class RowPlanner:
    """Finds the sequences of any row of the training sequence."""

    def __init__(
        self,
        corpus: PreparedCorpus,
        vocabulary: Vocabulary,
        objective: ObjectiveConfig,
        batch: BatchConfig,
        split: str,
        retrieval: Retrieval | None,
    ) -> None:
        self._vocabulary, self._objective, self._config = vocabulary, objective, batch
        self._splits, self._retrieval = corpus.splits(split), retrieval
        if retrieval is not None:
            self._kept = {task: retrieval.lists.of_split(task, split)[0] for task in self._splits}
        sizes = {task: documents.num_in_epoch for task, documents in self._splits.items()}
        rates = sampling_rates(sizes, corpus.rates(), batch.task_sampling)
        groups = {task: found for task, documents in self._splits.items() if (found := documents.alternatives)}
        self._order = DocumentOrder(sizes, rates, batch.seed, groups)
        self._longest = longest_document(batch)
        if self._longest is not None and self._longest < 1:
            raise UserError(f"config.batch.sequence_length {batch.sequence_length} holds no document")
        dtype = next(iter(self._splits.values())).dtype
        self._instructions = InstructionPlanner(self._splits, vocabulary, objective, batch)
        self.has_roles = not (role_weights(objective.weights) == 1).all()
        self._end, self._break = np.array([vocabulary.end], dtype), np.array([vocabulary.break_], dtype)
        # Many consecutive rows use the plan of a block.
        self.plan = lru_cache(maxsize=4)(self._plan)

    def sequences(self, block: int, row: int) -> list[Sequence]:
        """The sequences of a row of a block."""
        plan = self.plan(block)
        return self._documents(plan, row) if self._longest is not None else self._row_of_stream(plan, row)

    def _plan(self, block: int) -> BlockPlan:
        references = self._order.block(block)
        lengths = np.zeros(SHUFFLE_BLOCK, np.int64)
        for task, documents in enumerate(self._splits.values()):
            mine = references.task == task
            lengths[mine] = documents.lengths[references.document[mine]]
        instructions = self._instructions.plan(references)
        if instructions is not None:
            lengths = np.where(instructions.is_instruction, instructions.lengths, lengths)
            # One that does not fit would lose its target.
            lengths[instructions.is_instruction & (lengths > (self._longest or 0))] = 0
        neighbors, added = self._sample_neighbors(references, lengths)
        lengths += added
        if self._longest is None:
            rows: list = concat_then_split_rows(lengths + NUM_ENDS, self._config.sequence_length + 1)
            masks = self._masks(block, np.arange(len(rows)))
        else:
            # A document is masked in a new way every time it comes.
            masks = self._masks(references.task, references.epoch, references.document)
            if instructions is not None:
                masks = instructions.fit_masks(masks, self._vocabulary.num_masks)
            # A document that fills its row leaves no room for sentinels, and then has no masks.
            room = np.maximum(self._longest - lengths, 0) // SENTINELS_PER_SPAN
            masks = dataclasses.replace(masks, counts=np.minimum(masks.counts, room))
            used = np.minimum(lengths, self._longest) + NUM_ENDS + SENTINELS_PER_SPAN * masks.counts - 1
            rows = best_fit_rows(used, self._config.sequence_length)
        key = (self._config.seed, Stream.ROW_ORDER, block)
        shuffled = counter_random.permutation_at(np.arange(len(rows)), len(rows), *key)
        return BlockPlan(references, neighbors, masks, instructions, [rows[i] for i in shuffled.tolist()])

    def _masks(self, *key: int | np.ndarray) -> SpanMasks:
        return sample_span_masks(self._objective, self._vocabulary.num_masks, self._config.seed, Stream.MASKS, *key)

    def _sample_neighbors(
        self, references: DocumentReferences, lengths: Int64[np.ndarray, "n"]
    ) -> tuple[Int64[np.ndarray, "n retrieved"], Int64[np.ndarray, "n"]]:
        """The neighbors of a block's documents, new ones in every epoch, and how many tokens they add to each."""
        if self._retrieval is None:
            return np.zeros((len(lengths), 0), np.int64), np.zeros(len(lengths), np.int64)
        datastore, config = self._retrieval.lists.documents, self._retrieval.config
        kept = np.full((len(lengths), config.num_kept), NONE, np.int64)
        for task, name in enumerate(self._splits):
            mine = references.task == task
            kept[mine] = self._kept[name][references.document[mine]]
        key = (self._config.seed, Stream.NEIGHBORS, references.task, references.epoch, references.document)
        sampled = sample_neighbors(kept, config, *key)
        # Each is followed by a `<break>`.
        added = np.cumsum(np.where(sampled == NONE, 0, datastore.lengths[sampled] + 1), axis=1, dtype=np.int64)
        if self._longest is not None:
            # The last ones give way where all together do not fit.
            sampled = np.where(lengths[:, None] + added <= self._longest, sampled, NONE)
            added = np.where(sampled == NONE, 0, added)
        return sampled, added.max(axis=1, initial=0)

    def _neighbors(self, plan: BlockPlan, index: int) -> list[np.ndarray]:
        """The neighbors of a document, each followed by `<break>`."""
        if self._retrieval is None:
            return []
        datastore = self._retrieval.lists.documents
        neighbors = [datastore.stored(neighbor) for neighbor in plan.neighbors[index].tolist() if neighbor != NONE]
        return [part for neighbor in neighbors for part in (neighbor, self._break)]

    def _stored(self, plan: BlockPlan, index: int) -> np.ndarray:
        return self._split(plan, index).stored(int(plan.references.document[index]))

    def _split(self, plan: BlockPlan, index: int) -> TaskSplit:
        return self._splits[self._order.tasks[int(plan.references.task[index])]]

    def _documents(self, plan: BlockPlan, row: int) -> list[Sequence]:
        assert self._longest is not None
        found = []
        for index in plan.rows[row]:
            if plan.instructions is not None and plan.instructions.template[index] >= 0:
                found += self._instruction(plan, plan.instructions, index)
                continue
            before, own = self._neighbors(plan, index), self._stored(plan, index)
            # The plan gives neighbors to no document that is too long alone.
            if len(own) > self._longest:
                before, own = [], truncate_document(own.astype(np.int32), self._longest, self._vocabulary)
            if length := sum(map(len, before)) + len(own):
                parts = [self._end, *before, own, self._end]
                roles = _roles(before, np.full(len(own), Role.TARGET)) if self.has_roles else None
                found.append(Sequence(parts, 0, length + NUM_ENDS, plan.masks, index, roles))
        return found

    def _instruction(self, plan: BlockPlan, instructions: InstructionPlan, index: int) -> list[Sequence]:
        """An instruction in its wording; nothing of one that no row holds."""
        if not instructions.lengths[index] or instructions.lengths[index] > (self._longest or 0):
            return []
        document = int(plan.references.document[index])
        own = self._instructions.assemble(instructions, index, self._split(plan, index), document)
        before = self._neighbors(plan, index)
        parts = [self._end, *before, own.tokens, self._end]
        roles = _roles(before, own.roles, own.end_role) if self.has_roles else None
        spans = None
        if instructions.has_target_masks[index]:
            first = 1 + sum(map(len, before))
            spans = [(first + start, first + stop) for start, stop in own.inner_targets]
        return [Sequence(parts, 0, sum(map(len, parts)), plan.masks, index, roles, spans)]

    def _row_of_stream(self, plan: BlockPlan, row: int) -> list[Sequence]:
        pieces = plan.rows[row]
        parts: list[np.ndarray] = []
        roles: list[np.ndarray] = []
        for index, _, _ in pieces:
            before, own = self._neighbors(plan, index), self._stored(plan, index)
            parts += [self._end, *before, own, self._end]
            roles += _roles(before, np.full(len(own), Role.TARGET)) if self.has_roles else []
        # Only whole parts are dropped from the start: image positions inside a cut image count from its first code.
        first, dropped = pieces[0][1], 0
        while first >= len(parts[dropped]):
            first, dropped = first - len(parts[dropped]), dropped + 1
        length = sum(stop - start for _, start, stop in pieces)
        roles_left = roles[dropped:] if self.has_roles else None
        return [Sequence(parts[dropped:], first, first + length, plan.masks, row, roles_left)]


def _roles(before: list[np.ndarray], own: np.ndarray, end: Role = Role.TARGET) -> list[np.ndarray]:
    """The roles of a document between its ends, after its neighbors; `end` is that of the last `</s>`."""
    retrieved = [np.full(len(part), Role.RETRIEVED) for part in before]
    return [np.array([Role.CONTEXT]), *retrieved, own, np.array([end])]


class RowLocator:
    """Finds the block of a row; blocks are planned up to it, from the first that is looked up or hinted at."""

    def __init__(self, rows_in_block: Callable[[int], int], start: tuple[int, int]) -> None:
        """`start` is a block and the number of rows before it."""
        self._rows_in_block = rows_in_block
        self._start_block, rows_before = start
        # One number per block, so that it may grow for as long as a run takes.
        self._rows_before = [rows_before]
        # Grain builds batches on a thread of its own.
        self._lock = threading.Lock()

    def locate(self, row: int) -> tuple[int, int]:
        """The block of a row, and the row's index in it."""
        with self._lock:
            if row < self._rows_before[0]:
                self._start_block, self._rows_before = 0, [0]
            while self._rows_before[-1] <= row:
                block = self._start_block + len(self._rows_before) - 1
                self._rows_before.append(self._rows_before[-1] + self._rows_in_block(block))
            known = bisect_right(self._rows_before, row) - 1
            return self._start_block + known, row - self._rows_before[known]
