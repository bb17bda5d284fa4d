"""Rows of an embedding table for the tokens that a text model lacks, from the statistics of those it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float32

# Rows in memory at a time.
_CHUNK = 8192
# Added to the variances, relative to their mean: of fewer rows than columns the covariance has no inverse.
_RIDGE = 1e-6


def sample_rows(
    read: Callable[[int, int], Float32[np.ndarray, "r E"]],
    is_used: Bool[np.ndarray, "R"],
    count: int,
    generator: np.random.Generator,
) -> Float32[np.ndarray, "n E"]:
    """Samples `count` rows from the normal distribution with the mean and covariance of a table's used rows.

    So the logits of a new token are, in each context, like those of any other (Hewitt, "Initializing new word
    embeddings for pretrained language models", 2021).

    Args:
      read: the rows of the table between two indices; called twice for each.
      is_used: which rows of the table have a token that texts are encoded to.
    """
    total = sum(part.sum(axis=0, dtype=np.float64) for part in _used(read, is_used))
    mean = total / is_used.sum()
    covariance = np.zeros((len(mean), len(mean)))
    for part in _used(read, is_used):
        centered = part.astype(np.float64) - mean
        covariance += centered.T @ centered
    covariance /= is_used.sum()
    covariance[np.diag_indices_from(covariance)] += _RIDGE * covariance.trace() / len(mean)
    noise = generator.standard_normal((count, len(mean)))
    return (mean + noise @ np.linalg.cholesky(covariance).T).astype(np.float32)


def _used(
    read: Callable[[int, int], Float32[np.ndarray, "r E"]], is_used: Bool[np.ndarray, "R"]
) -> Iterator[Float32[np.ndarray, "r E"]]:
    for start in range(0, len(is_used), _CHUNK):
        part = is_used[start : start + _CHUNK]
        yield read(start, start + len(part))[part]
