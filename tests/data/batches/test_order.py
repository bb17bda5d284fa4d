"""The order of documents: every document once an epoch, every task at its rate, whatever the rates are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data.batches.order import SHUFFLE_BLOCK, DocumentOrder


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
