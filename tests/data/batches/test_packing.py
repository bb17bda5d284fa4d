"""Packing plans: nothing lost, nothing too long, little waste."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cm3leon_jax.data.batches.packing import best_fit_rows, concat_then_split_rows

lengths = st.lists(st.integers(1, 64), min_size=1, max_size=80).map(lambda x: np.array(x, np.int64))


@given(lengths)
def test_best_fit_places_every_document_once_in_a_row_that_holds_it(lengths):
    rows = best_fit_rows(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= 64 for row in rows)
    # No two rows could be one, so at most one row is less than half full.
    assert sum(lengths[row].sum() <= 32 for row in rows) <= 1


@given(lengths, st.integers(1, 70))
def test_concat_then_split_rows_are_the_documents_end_to_end(lengths, row_length):
    rows = concat_then_split_rows(lengths, row_length)
    pieces = [(document, offset) for row in rows for document, start, stop in row for offset in range(start, stop)]
    assert pieces == [(document, offset) for document, length in enumerate(lengths) for offset in range(length)]
    assert all(sum(stop - start for _, start, stop in row) == row_length for row in rows[:-1])


def test_long_and_short_documents_fill_rows_well():
    mixed = np.random.default_rng(0).integers(100, 3300, 4000)
    rows = best_fit_rows(mixed, 4096)
    assert mixed.sum() / (len(rows) * 4096) > 0.97
