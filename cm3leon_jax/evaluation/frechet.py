"""The Frechet distance between two sets of features, taken for Gaussians (Heusel et al., arXiv 1706.08500)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.estimates import Estimate

# Eigenvalues below this fraction of the largest are rounding.
_ROUNDING = 1e-12
# Rows of features in float64 at a time.
_CHUNK = 4096


class Moments(NamedTuple):
    """Mean and covariance (of n - 1) of a set of features."""

    mean: Float64[np.ndarray, "F"]
    covariance: Float64[np.ndarray, "F F"]


def moments(features: Float32[np.ndarray, "n F"]) -> Moments:
    """Mean and covariance of at least two vectors."""
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), _CHUNK):
        centered = features[start : start + _CHUNK] - mean
        covariance += centered.T @ centered
    return Moments(mean, covariance / (len(features) - 1))


def frechet_distance(
    reference: Float32[np.ndarray, "m F"] | Moments,
    features: Float32[np.ndarray, "n F"],
    groups: Sequence[object] | None = None,
) -> Estimate:
    """|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), with the interval over samples of the second set.

    With S_1 = R R^T, the trace of the root is the sum of the roots of the eigenvalues of R^T S_2 R, which is symmetric:
    nothing has to be inverted, and there are no imaginary parts, whatever the rank of either.

    The interval is a bootstrap of the distance's linear expansion in the weights of the items (the infinitesimal
    jackknife: Efron 1982, chapter 6). One eigendecomposition serves all resamples, and items that a resample repeats do
    not raise the distance, as they do where the covariance is computed again. The reference counts as exact, and the
    bias of a finite n (arXiv 1911.07023) remains: only distances of equal n compare.

    Args:
      reference: features, or their moments; at least two.
      features: at least two.
      groups: as for `estimates.mean`.
    """
    mean, factor = _factor(reference)
    own_mean = features.mean(axis=0, dtype=np.float64)
    difference, count = own_mean - mean, len(features)
    # Each item's share in |mu_1 - mu_2|^2 and tr(S_2), and its vector in the space of the reference's factor.
    linear, spread = np.empty(count), np.empty(count)
    projected = np.empty((count, factor.shape[1]))
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        centered = features[rows] - own_mean
        linear[rows] = 2 * centered @ difference
        spread[rows] = np.einsum("nf,nf->n", centered, centered)
        projected[rows] = centered @ factor
    trace, roots = _root_trace(projected)
    trace_reference = np.einsum("fr,fr->", factor, factor)
    distance = difference @ difference + trace_reference + spread.sum() / (count - 1) - 2 * trace
    influence = linear + spread - roots
    estimate = estimates.mean(distance + influence - influence.mean(), groups)
    return Estimate(float(distance), estimate.low, estimate.high, count)


def _factor(reference: np.ndarray | Moments) -> tuple[Float64[np.ndarray, "F"], Float64[np.ndarray, "F r"]]:
    """The mean, and a matrix R with S = R R^T."""
    if not isinstance(reference, Moments):
        if len(reference) <= reference.shape[1]:
            mean = reference.mean(axis=0, dtype=np.float64)
            return mean, (reference - mean).T / np.sqrt(len(reference) - 1)
        reference = moments(reference)
    values, vectors = np.linalg.eigh(reference.covariance)
    kept = values > _ROUNDING * max(values[-1], 0)
    return reference.mean, vectors[:, kept] * np.sqrt(values[kept])


def _root_trace(rows: Float64[np.ndarray, "n r"]) -> tuple[float, Float64[np.ndarray, "n"]]:
    """tr(C^(1/2)) of the covariance C of centered rows, and x^T C^(-1/2) x of each row x.

    The second is twice the derivative of the first by the weight of the row, up to a constant.
    """
    count, rank = rows.shape
    if count < rank:
        values, vectors = np.linalg.eigh(rows @ rows.T / (count - 1))
        singular = np.sqrt(np.maximum(values, 0))
        return float(singular.sum()), (count - 1) * vectors**2 @ singular
    values, vectors = np.linalg.eigh(rows.T @ rows / (count - 1))
    singular = np.sqrt(np.maximum(values, 0))
    kept = values > _ROUNDING * max(values[-1], 0)
    return float(singular.sum()), (rows @ vectors[:, kept]) ** 2 @ (1 / singular[kept])
