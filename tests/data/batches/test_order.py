"""The order of documents: every document once an epoch, every task at its rate, whatever the rates are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data.batches.config import BatchConfig, TaskSamplingConfig
from cm3leon_jax.data.batches.order import SHUFFLE_BLOCK, DocumentOrder, sampling_rates
from cm3leon_jax.errors import UserError


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-5, 1.0), min_size=1, max_size=5), st.integers(0, 300))
def test_any_rates_fill_every_window(rates, window):
    tasks = {f"task{i}": 7 + i for i in range(len(rates))}
    order = DocumentOrder(tasks, dict(zip(tasks, rates, strict=True)), seed=1)
    found = order.block(window)
    assert len(found.task) == SHUFFLE_BLOCK
    shares = np.bincount(found.task, minlength=len(rates)) / SHUFFLE_BLOCK
    np.testing.assert_allclose(shares, np.array(rates) / sum(rates), atol=(len(rates) + 1) / SHUFFLE_BLOCK)


def test_an_epoch_holds_each_document_once_in_a_new_order():
    order = DocumentOrder({"a": 1000}, {"a": 2.0}, seed=5)
    found = order.block(0)
    orders = []
    for epoch in range(SHUFFLE_BLOCK // 1000):
        documents = found.document[found.epoch == epoch]
        assert sorted(documents.tolist()) == list(range(1000))
        orders.append(tuple(documents.tolist()))
    assert len(set(orders)) == len(orders)


def test_another_seed_is_another_order():
    first, second = (DocumentOrder({"a": 100}, {"a": 1.0}, seed=seed).block(0) for seed in (1, 2))
    assert not np.array_equal(first.document, second.document)


SIZES = {"large": 900_000, "small": 10_000, "medium": 90_000}


def factors(rates: dict[str, float], **config) -> dict[str, float]:
    """How often a document of each task comes, relative to all of them equally often."""
    found = sampling_rates(SIZES, rates, TaskSamplingConfig(**config))
    total = sum(found.values())
    return {task: found[task] / total / (SIZES[task] / sum(SIZES.values())) for task in SIZES}


def test_by_default_rates_are_those_of_the_mixture():
    rates = {"large": 0.1, "small": 0.7, "medium": 0.3}
    assert sampling_rates(SIZES, rates, TaskSamplingConfig()) is rates
    assert BatchConfig().task_sampling == TaskSamplingConfig()


def test_alpha_is_a_power_of_the_size():
    equal = dict.fromkeys(SIZES, 2.0)
    assert factors(equal, alpha=1.0) == pytest.approx(dict.fromkeys(SIZES, 1.0))
    root = sampling_rates(SIZES, equal, TaskSamplingConfig(alpha=0.5))
    assert root["medium"] / root["small"] == pytest.approx(3) and sum(root.values()) == pytest.approx(1)
    zero = sampling_rates(SIZES, equal, TaskSamplingConfig(alpha=0.0))
    assert zero == pytest.approx(dict.fromkeys(SIZES, 1 / 3))


def test_bounds_are_those_of_the_paper():
    found = factors({"large": 0.1, "small": 10.0, "medium": 1.0}, max_oversampling=3.0, min_undersampling=0.3)
    assert found == pytest.approx({"large": 0.7 / 0.9, "small": 3, "medium": 3})
    found = factors({"large": 1.0, "small": 1e-9, "medium": 1.0}, max_oversampling=3.0, min_undersampling=0.3)
    assert found["small"] == pytest.approx(0.3) and found["medium"] == pytest.approx(3)
    within = {"large": 0.9, "small": 0.02, "medium": 0.08}
    assert factors(within, max_oversampling=3.0, min_undersampling=0.3) == pytest.approx(factors(within, alpha=0.0))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(1e-9, 1e9)), min_size=1, max_size=6),
    st.floats(1, 10),
    st.just(0.0) | st.floats(0.01, 1),
)
def test_any_mixture_is_within_any_bounds_and_keeps_proportions_inside(tasks, high, low):
    sizes = {f"t{number}": size for number, (size, _) in enumerate(tasks)}
    rates = {f"t{number}": rate for number, (_, rate) in enumerate(tasks)}
    config = TaskSamplingConfig(max_oversampling=high, min_undersampling=low)
    found = sampling_rates(sizes, rates, config)
    total = sum(sizes.values())
    by_size = {task: found[task] / (size / total) for task, size in sizes.items()}
    assert sum(found.values()) == pytest.approx(1)
    assert all(low - 1e-6 <= factor <= high + 1e-6 for factor in by_size.values())
    free = [task for task, factor in by_size.items() if low * 1.001 < factor < high * 0.999]
    for task in free[1:]:
        assert found[task] / found[free[0]] == pytest.approx(rates[task] / rates[free[0]], rel=1e-4)


def test_bounds_that_hold_no_mixture_are_refused():
    with pytest.raises(UserError, match=r"config.batch.task_sampling.max_oversampling is 0.5: at least 1"):
        TaskSamplingConfig(max_oversampling=0.5)
    with pytest.raises(UserError, match=r"config.batch.task_sampling.min_undersampling is 2.0"):
        TaskSamplingConfig(min_undersampling=2.0)
