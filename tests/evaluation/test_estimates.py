"""Intervals cover what they should, on whatever sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.evaluation.estimates import Estimate, bootstrap, flatten, mean, rows


def test_interval_of_a_mean_is_that_of_the_normal_law_on_a_large_sample() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    estimate = mean(values)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.n == 4000
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_covers_the_truth_in_about_95_of_100_samples() -> None:
    random = np.random.default_rng(1)
    covered = [
        estimate.low <= 0.3 <= estimate.high
        for estimate in (mean((random.random(200) < 0.3).astype(float)) for _ in range(200))
    ]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_images_of_one_prompt_count_as_one_draw() -> None:
    of_prompt = np.random.default_rng(2).random(50)
    repeated = np.repeat(of_prompt, 20)
    groups = np.repeat(np.arange(50), 20).tolist()
    alone, grouped, naive = mean(of_prompt), mean(repeated, groups), mean(repeated)
    assert grouped.value == pytest.approx(alone.value)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    assert grouped.n == 1000
    assert naive.high - naive.low < 0.4 * (grouped.high - grouped.low)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_interval_lies_within_the_values_and_around_the_mean(values: list[float]) -> None:
    estimate = mean(values)
    assert min(values) - 1e-6 <= estimate.low <= estimate.value + 1e-6
    assert estimate.value - 1e-6 <= estimate.high <= max(values) + 1e-6
    assert estimate == mean(values), "an interval is drawn with a fixed seed"


def test_statistic_of_a_whole_sample_agrees_with_the_mean() -> None:
    values = np.random.default_rng(3).random(100)
    found, expected = bootstrap(lambda drawn: float(values[drawn].mean()), 100), mean(values)
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_no_score_of_nothing_and_none_of_a_nan(values: list[float]) -> None:
    with pytest.raises(ValueError, match="a mean needs values"):
        mean(values)


def test_flat_names() -> None:
    assert flatten({"a": 1.0, "b": Estimate(0.5, 0.4, 0.6, 10)}) == {
        "a": 1.0,
        "b": 0.5,
        "b_low": 0.4,
        "b_high": 0.6,
        "b_n": 10,
    }


def test_rows_hold_each_estimate_once() -> None:
    estimate = Estimate(0.5, 0.4, 0.6, 10)
    flat = flatten({"loss_low": 1.0, "b": estimate, "c_n": 3.0})
    assert rows(flat) == [("loss_low", 1.0, None), ("b", 0.5, estimate), ("c_n", 3.0, None)]
