"""The order of documents in the endless training sequence.

The sequence is cut into shuffle blocks of a fixed number of documents. In each block every task has its fraction of the
mixture's rates, each task goes through its documents in a new order every epoch, and no document comes twice before all
of its task have come once. Any block can be computed alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from cm3leon_jax import counter_random
from cm3leon_jax.counter_random import Stream
from cm3leon_jax.data.batches.config import TaskSamplingConfig
from cm3leon_jax.data.corpus.alternatives import Alternatives

SHUFFLE_BLOCK = 1 << 14


# Halvings of the interval in which a scale is looked for: more than a float has bits.
_NUM_HALVINGS = 200


def sampling_rates(
    num_documents: Mapping[str, int], rates: Mapping[str, float], config: TaskSamplingConfig
) -> Mapping[str, float]:
    """The rate at which each task is sampled, from the mixture's rates and how many documents the tasks have.

    Within the bounds the rates keep their proportions.
    """
    if config == TaskSamplingConfig():
        return rates
    sizes = np.array(list(num_documents.values()), np.float64)
    wanted = np.array([rates[task] for task in num_documents], np.float64)
    if config.alpha is not None:
        wanted = wanted * sizes**config.alpha
    by_size = sizes / sizes.sum()
    low = by_size * (config.min_undersampling or 0)
    high = np.full(len(sizes), np.inf) if config.max_oversampling is None else by_size * config.max_oversampling
    # The sum grows with the scale, from that of the lower bounds, at most 1, to that of the upper ones, at least 1.
    least, most = 0.0, float((1 / wanted).max())
    for _ in range(_NUM_HALVINGS):
        scale = (least + most) / 2
        least, most = (scale, most) if np.clip(scale * wanted, low, high).sum() < 1 else (least, scale)
    found = np.clip(most * wanted, low, high)
    return dict(zip(num_documents, (found / found.sum()).tolist(), strict=True))


@dataclass(frozen=True)
class DocumentReferences:
    """The documents of a block, in order: which task, which pass over it, and which of its documents."""

    task: Int64[np.ndarray, "n"]
    epoch: Int64[np.ndarray, "n"]
    document: Int64[np.ndarray, "n"]


class DocumentOrder:
    """The order of documents of a mixture, a pure function of (numbers of documents, groups, rates, seed)."""

    def __init__(
        self,
        num_documents: Mapping[str, int],
        rates: Mapping[str, float],
        seed: int,
        alternatives: Mapping[str, Alternatives] | None = None,
    ) -> None:
        """
        Args:
          num_documents: how many documents an epoch takes of each task.
          alternatives: of the tasks of which an epoch takes one document of a group, the groups.
        """
        self.tasks = tuple(num_documents)
        self._sizes = tuple(num_documents[task] for task in self.tasks)
        self._alternatives = tuple((alternatives or {}).get(task) for task in self.tasks)
        total = sum(rates[task] for task in self.tasks)
        self._fractions = tuple(rates[task] / total for task in self.tasks)
        self._seed = seed

    def _num_consumed(self, position: int) -> list[int]:
        """Documents of each task before `position`."""
        counts = [int(np.floor(position * fraction)) for fraction in self._fractions]
        # The remainder of rounding goes to the largest task, which has far more documents in a block than that.
        counts[int(np.argmax(self._fractions))] += position - sum(counts)
        return counts

    def block(self, index: int) -> DocumentReferences:
        parts = []
        starts, stops = self._num_consumed(index * SHUFFLE_BLOCK), self._num_consumed((index + 1) * SHUFFLE_BLOCK)
        for task, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            position = np.arange(start, stop, dtype=np.int64)
            epoch, within = np.divmod(position, self._sizes[task])
            document = counter_random.permutation_at(
                within, self._sizes[task], self._seed, Stream.DOCUMENT_ORDER, task, epoch
            )
            if (groups := self._alternatives[task]) is not None:
                document = groups.sample(document, self._seed, Stream.ALTERNATIVE, task, epoch)
            parts.append((np.full(len(position), task, np.int64), epoch, document))
        tasks, epochs, documents = (np.concatenate(part) for part in zip(*parts, strict=True))
        size = len(tasks)
        shuffled = counter_random.permutation_at(np.arange(size), size, self._seed, Stream.BLOCK_ORDER, index)
        return DocumentReferences(tasks[shuffled], epochs[shuffled], documents[shuffled])
