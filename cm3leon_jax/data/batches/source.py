"""The batch at step t as a pure function of (corpus, seed, t): shuffled, mixed, with neighbors, masked, packed.

Nothing here remembers where it was, so a run resumes exactly, at any step, after any number of epochs, and on any
number of processes: each builds the rows of the same global batch that its devices hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grain
import numpy as np
from jaxtyping import Float32, Int

from cm3leon_jax import counter_random
from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.data.batches.config import BatchConfig, ObjectiveConfig
from cm3leon_jax.data.batches.objective import (
    mask_spans,
    positions_in_image,
    role_weights,
    sample_spans,
    segments_between,
    separator_indices,
)
from cm3leon_jax.data.batches.row_plan import Retrieval, RowLocator, RowPlanner
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.vocabulary import Vocabulary

# Rows that are assembled together: fewer calls than one by one, and their tokens still fit a core's cache.
_ROWS_AT_ONCE = 16


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
    ) -> None:
        """
        Args:
          rows: which rows of each batch are built; None: all.
          start_block: a block and the number of rows before it, as `block_at_step` gives them for a step: later rows
            are found without planning the blocks before. It changes how long a look-up takes, never its result.
        """
        self.rows = range(batch.batch_size) if rows is None else rows
        self.planner = RowPlanner(corpus, vocabulary, objective, batch, split, retrieval)
        self.locate = RowLocator(lambda block: len(self.planner.plan(block).rows), start_block).locate
        self._vocabulary, self._config = vocabulary, batch
        self._role_weights = role_weights(objective.weights)

    def __len__(self) -> int:
        return 1 << 62

    def __getitem__(self, step: int) -> Batch:
        rows = [step * self._config.batch_size + row for row in self.rows]
        batch = Batch.padding(len(rows), self._config.sequence_length, self._vocabulary.pad)
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            self._fill(batch, first, rows[first : first + _ROWS_AT_ONCE])
        return batch

    def block_at_step(self, step: int) -> tuple[int, int]:
        """The block in which a step begins, and the number of rows before that block."""
        row = step * self._config.batch_size
        block, index = self.locate(row)
        return block, row - index

    def _fill(self, batch: Batch, first: int, rows: Sequence[int]) -> None:
        """Builds rows of the training sequence as rows `first` .. of a batch that is empty there."""
        sequences = [
            (row, sequence)
            for row, wanted in enumerate(rows, start=first)
            for sequence in self.planner.sequences(*self.locate(wanted))
        ]
        parts = [part for _, sequence in sequences for part in sequence.parts]
        if not parts:
            return
        # All at once, and the generator below made once: both cost more than their work on one sequence.
        tokens = np.concatenate(parts, dtype=np.int32)
        image_positions = positions_in_image(tokens, self._vocabulary)
        separators = separator_indices(tokens, self._vocabulary)
        columns = [tokens, image_positions]
        if self.planner.has_roles:
            columns.append(np.concatenate([part for _, sequence in sequences for part in sequence.roles or ()]))
        found = np.stack(columns)
        rng = counter_random.generator(0)
        ends = [0] * (first + len(rows))
        offset = 0
        for row, sequence in sequences:
            start, stop = offset + sequence.start, offset + sequence.stop
            offset += sum(map(len, sequence.parts))
            own = found[:, start:stop]
            if count := int(sequence.masks.counts[sequence.mask]):
                spans = sequence.spans
                if spans is None:
                    counter_random.restart(rng, sequence.masks.keys[sequence.mask])
                    segments = segments_between(separators, start, stop)
                    is_whole = bool(sequence.masks.is_whole[sequence.mask])
                    spans = sample_spans(stop - start, segments, count, is_whole, rng)
                own = mask_spans(own, spans[:count], self._vocabulary, self._config.sequence_length + 1)
            weights = self._weights(own) if self.planner.has_roles else 1
            ends[row] = _write_sequence(own, weights, batch, row, ends[row])

    def _weights(self, rows: Int[np.ndarray, "k n"]) -> Float32[np.ndarray, "n-1"]:
        """What each token after the first counts in the loss, from tokens, positions and roles."""
        is_image = self._vocabulary.is_image(rows[0, 1:]).astype(np.int64)
        return self._role_weights[rows[2, 1:], is_image]


def _write_sequence(
    rows: Int[np.ndarray, "k n"], weights: Float32[np.ndarray, "n-1"] | int, batch: Batch, row: int, start: int
) -> int:
    """Writes tokens and positions in images into a row from `start` on; returns where they end.

    The last token is only a target.
    """
    tokens, image_positions = rows[0], rows[1]
    stop = start + len(tokens) - 1
    batch.tokens[row, start:stop], batch.targets[row, start:stop] = tokens[:-1], tokens[1:]
    batch.weights[row, start:stop] = weights
    batch.positions[row, start:stop] = np.arange(stop - start, dtype=np.int32)
    batch.document_start[row, start:stop] = start
    batch.image_positions[row, start:stop] = image_positions[:-1]
    return stop


def iterate(source: BatchSource, first_step: int, num_steps: int, prefetch: int = 4) -> Iterator[Batch]:
    """The batches of steps `first_step` .. `num_steps` - 1, built ahead on a thread by Grain."""
    steps = grain.MapDataset.source(source)[first_step:num_steps]
    # One thread: building a batch is Python, so more threads only fight for the interpreter.
    dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    return iter(dataset)
