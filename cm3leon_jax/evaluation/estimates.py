"""A measured value with its 95% interval: what a metric returns for whatever it measured on a sample of items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

# Resamples of a bootstrap, and the seed of them: a value measured twice has the same interval.
_NUM_RESAMPLES = 1000
_SEED = 0
# Most indices resampled at once: bounds the memory.
_MOST_INDICES = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A value measured on `n` items, and the percentile bootstrap interval that covers it in 95 of 100 samples.

    Where all items agree (all right, or all wrong) a bootstrap cannot see the spread, and the interval is a point.
    """

    value: float
    low: float
    high: float
    n: int

    def map(self, function: Callable[[float], float]) -> Estimate:
        """The estimate of an increasing function of the value, such as the perplexity of a loss."""
        return Estimate(function(self.value), function(self.low), function(self.high), self.n)


def mean(values: Sequence[float] | Float[np.ndarray, "n"], groups: Sequence[object] | None = None) -> Estimate:
    """The mean of one value per item.

    Args:
      values: one per item; none may be NaN.
      groups: items that are not independent share a group, such as the images of one prompt: groups are
        resampled as a whole.

    Raises:
      ValueError: without items, or for a value that is NaN.
    """
    values = np.asarray(values, np.float64)
    if not len(values) or np.isnan(values).any():
        raise ValueError(f"a mean needs values, and of these {len(values)} are {int(np.isnan(values).sum())} NaN")
    if groups is None:
        return ratio(values, np.ones(len(values)))
    numbers: dict[object, int] = {}
    of_item = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    estimate = ratio(np.bincount(of_item, values), np.bincount(of_item).astype(np.float64))
    return replace(estimate, n=len(values))


def ratio(sums: Float[np.ndarray, "n"], counts: Float[np.ndarray, "n"]) -> Estimate:
    """The ratio of two sums over items, such as the loss per token of documents of different lengths."""
    value = float(sums.sum() / counts.sum())

    def statistic(chosen: Int[np.ndarray, "... n"], axis: int = -1) -> Float[np.ndarray, "..."]:
        return sums[chosen].sum(axis) / counts[chosen].sum(axis)

    low, high = _interval(statistic, len(sums), _NUM_RESAMPLES, vectorized=True) if len(sums) > 1 else (value, value)
    return Estimate(value, low, high, len(sums))


def bootstrap(
    statistic: Callable[[Int[np.ndarray, "n"]], float], n: int, num_resamples: int = _NUM_RESAMPLES
) -> Estimate:
    """A statistic of the whole sample, such as a score of a corpus.

    Args:
      statistic: takes the indices of the items that count, repeats included.
    """
    value = float(statistic(np.arange(n)))
    low, high = _interval(statistic, n, num_resamples, vectorized=False) if n > 1 else (value, value)
    return Estimate(value, low, high, n)


def _interval(
    statistic: Callable[..., float | Float[np.ndarray, "..."]], n: int, num_resamples: int, vectorized: bool
) -> tuple[float, float]:
    result = stats.bootstrap(
        (np.arange(n),),
        statistic,
        n_resamples=num_resamples,
        batch=max(1, min(num_resamples, _MOST_INDICES // n)),
        vectorized=vectorized,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def flatten(found: Mapping[str, float | Estimate]) -> dict[str, float]:
    """Values by flat names: an estimate is NAME, NAME_low, NAME_high and NAME_n."""
    flat: dict[str, float] = {}
    for name, value in found.items():
        if isinstance(value, Estimate):
            flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high, f"{name}_n": value.n}
        else:
            flat[name] = value
    return flat


def rows(values: Mapping[str, float]) -> list[tuple[str, float, Estimate | None]]:
    """Flat values by name, each estimate once: the inverse of `flatten`, for tables."""
    parts = ("low", "high", "n")
    owners = [name for name in values if all(f"{name}_{part}" in values for part in parts)]
    of_estimates = {f"{name}_{part}" for name in owners for part in parts}
    return [
        (name, value, _estimate(value, values, name) if name in owners else None)
        for name, value in values.items()
        if name not in of_estimates
    ]


def _estimate(value: float, values: Mapping[str, float], name: str) -> Estimate:
    return Estimate(value, values[f"{name}_low"], values[f"{name}_high"], int(values[f"{name}_n"]))
