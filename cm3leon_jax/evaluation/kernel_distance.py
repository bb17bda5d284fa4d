"""Squared maximum mean discrepancies of two sets of features: KID (arXiv 1801.01401) and CMMD (arXiv 2401.09603)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float64

from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.estimates import Estimate

# CMMD's constants.
_BANDWIDTH, _SCALE = 10.0, 1000.0
# Most values of a kernel at a time.
_MOST_VALUES = 1 << 23

Kernel = Callable[[Float64[np.ndarray, "a F"], Float64[np.ndarray, "b F"]], Float64[np.ndarray, "a b"]]


def kid(
    real: Float[np.ndarray, "m F"], generated: Float[np.ndarray, "n F"], groups: Sequence[object] | None = None
) -> Estimate:
    """The unbiased squared discrepancy under (x y / F + 1)^3, with the interval over the generated items.

    Published values are means over random subsets of 1,000; this is over all pairs, what those means estimate.
    `groups` are as for `estimates.mean`.
    """
    return _squared_discrepancy(real, generated, _cubic, groups, unbiased=True)


def cmmd(
    real: Float[np.ndarray, "m F"], generated: Float[np.ndarray, "n F"], groups: Sequence[object] | None = None
) -> Estimate:
    """1,000 times the squared discrepancy of unit vectors under a Gaussian of standard deviation 10.

    As published it counts each item's pair with itself, so that it is never negative.
    """
    found = _squared_discrepancy(real, generated, _gaussian, groups, unbiased=False)
    return Estimate(_SCALE * found.value, _SCALE * found.low, _SCALE * found.high, found.n)


def _cubic(a: Float64[np.ndarray, "a F"], b: Float64[np.ndarray, "b F"]) -> Float64[np.ndarray, "a b"]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _gaussian(a: Float64[np.ndarray, "a F"], b: Float64[np.ndarray, "b F"]) -> Float64[np.ndarray, "a b"]:
    squares = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2 * a @ b.T
    return np.exp(-squares / (2 * _BANDWIDTH**2))


def _squared_discrepancy(
    real: Float[np.ndarray, "m F"],
    generated: Float[np.ndarray, "n F"],
    kernel: Kernel,
    groups: Sequence[object] | None,
    *,
    unbiased: bool,
) -> Estimate:
    """E k(x, x') + E k(y, y') - 2 E k(x, y).

    Its interval is the bootstrap of its linear part, to which an item contributes twice the mean of what its pairs do.
    """
    x, y = generated.astype(np.float64), real.astype(np.float64)
    within, between = _means(x, x, kernel, unbiased), _means(x, y, kernel, False)
    value = within.mean() + _means(y, y, kernel, unbiased).mean() - 2 * between.mean()
    linear = 2 * (within - between)
    interval = estimates.mean(value + linear - linear.mean(), groups)
    return Estimate(float(value), interval.low, interval.high, len(x))


def _means(
    a: Float64[np.ndarray, "a F"], b: Float64[np.ndarray, "b F"], kernel: Kernel, without_itself: bool
) -> Float64[np.ndarray, "a"]:
    """The mean of each row's kernel with all of `b`, without the row itself where both are one set."""
    size = max(1, _MOST_VALUES // len(b))
    means = np.empty(len(a))
    for start in range(0, len(a), size):
        values = kernel(a[start : start + size], b)
        total = values.sum(axis=1)
        if without_itself:
            total -= np.diagonal(values, start)
        means[start : start + size] = total / (len(b) - without_itself)
    return means
