"""Which document stands at each position of the endless training sequence.

The sequence is cut into windows of a fixed number of documents. In each window every task has its share of the
mixture's rates, each task goes through its documents in a new order every epoch, and no document comes twice before all
of its task have come once. Any window can be computed alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from cm3leon_jax import counter_random

SHUFFLE_BLOCK = 1 << 14

_ORDER, _BLOCK_ORDER = 1, 2


@dataclass(frozen=True)
class DocumentReferences:
    """The documents of a window, in order: which task, which pass over it, and which of its documents."""

    task: Int64[np.ndarray, "n"]
    epoch: Int64[np.ndarray, "n"]
    document: Int64[np.ndarray, "n"]


class DocumentOrder:
    """The order of documents of a mixture, a pure function of (numbers of documents, rates, seed)."""

    def __init__(self, num_documents: Mapping[str, int], rates: Mapping[str, float], seed: int) -> None:
        self.tasks = tuple(num_documents)
        self._sizes = tuple(num_documents[task] for task in self.tasks)
        total = sum(rates[task] for task in self.tasks)
        self._shares = tuple(rates[task] / total for task in self.tasks)
        self._seed = seed

    def _taken(self, position: int) -> list[int]:
        """How many documents each task has given before `position`."""
        counts = [int(np.floor(position * share)) for share in self._shares]
        # What rounding leaves goes to the largest share, which a window always gives far more than that.
        counts[int(np.argmax(self._shares))] += position - sum(counts)
        return counts

    def window(self, index: int) -> DocumentReferences:
        """The documents of window `index`."""
        tasks, epochs, documents = [], [], []
        starts, stops = self._taken(index * SHUFFLE_BLOCK), self._taken((index + 1) * SHUFFLE_BLOCK)
        for task, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            position = np.arange(start, stop, dtype=np.int64)
            epoch, within = np.divmod(position, self._sizes[task])
            document = counter_random.permutation_at(within, self._sizes[task], self._seed, _ORDER, task, epoch)
            tasks.append(np.full(len(position), task, np.int64))
            epochs.append(epoch)
            documents.append(document)
        size = sum(map(len, tasks))
        mixed = counter_random.permutation_at(np.arange(size), size, self._seed, _BLOCK_ORDER, index)
        return DocumentReferences(*(np.concatenate(parts)[mixed] for parts in (tasks, epochs, documents)))
