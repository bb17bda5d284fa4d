"""Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797) of features.

Each set is taken for the union of balls around its vectors that reach to their k-th nearest neighbors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float64

from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.estimates import Estimate

# Most distances at a time.
_MOST_DISTANCES = 1 << 23


def manifold_values(
    real: Float[np.ndarray, "m F"],
    generated: Float[np.ndarray, "n F"],
    neighbors: int = 5,
    groups: Sequence[object] | None = None,
) -> dict[str, Estimate]:
    """Values by name; intervals take the balls as they are, and are over the items that are counted.

    precision: the fraction of generated items within a ball of the real ones; density: the mean number of such balls
    that an item is in, by k. recall: the fraction of real items within a ball of the generated ones; coverage: the
    fraction of real balls that hold a generated item.

    Args:
      real: more than `neighbors` vectors.
      generated: the same.
      neighbors: k.
      groups: of the generated, as for `estimates.mean`.
    """
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    real_radii, generated_radii = _radii(real, neighbors), _radii(generated, neighbors)
    balls = np.empty(len(generated))
    is_recalled, is_covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, distances in _squared_distances(generated, real):
        is_in_ball = distances <= real_radii
        balls[rows] = is_in_ball.sum(axis=1)
        is_covered |= is_in_ball.any(axis=0)
        is_recalled |= (distances <= generated_radii[rows, None]).any(axis=0)
    return {
        "precision": estimates.mean((balls > 0).astype(np.float64), groups),
        "recall": estimates.mean(is_recalled.astype(np.float64)),
        "density": estimates.mean(balls / neighbors, groups),
        "coverage": estimates.mean(is_covered.astype(np.float64)),
    }


def _radii(vectors: Float64[np.ndarray, "n F"], neighbors: int) -> Float64[np.ndarray, "n"]:
    """The squared distance of each vector to its k-th nearest other."""
    radii = np.empty(len(vectors))
    for rows, distances in _squared_distances(vectors, vectors):
        # Its distance to itself is 0, not a rounding of it.
        distances[np.arange(len(distances)), np.arange(rows.start, rows.start + len(distances))] = 0
        radii[rows] = np.partition(distances, neighbors, axis=1)[:, neighbors]
    return radii


def _squared_distances(
    a: Float64[np.ndarray, "a F"], b: Float64[np.ndarray, "b F"]
) -> Iterator[tuple[slice, Float64[np.ndarray, "rows b"]]]:
    """A block of rows at a time."""
    size = max(1, _MOST_DISTANCES // len(b))
    squares = np.einsum("bf,bf->b", b, b)
    for start in range(0, len(a), size):
        rows = slice(start, start + size)
        block = a[rows]
        yield rows, np.maximum(np.einsum("af,af->a", block, block)[:, None] + squares - 2 * block @ b.T, 0)
