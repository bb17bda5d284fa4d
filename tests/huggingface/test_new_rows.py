"""Rows for tokens that a folder lacks have the statistics of those it has, whatever the unused ones are."""

import numpy as np
import pytest

from cm3leon_jax.huggingface import new_rows


@pytest.mark.parametrize("chunk", [100, 1 << 20])
def test_rows_have_the_mean_and_covariance_of_the_used_ones(monkeypatch, chunk):
    monkeypatch.setattr(new_rows, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    table = (rng.standard_normal((3000, 6)) @ rng.standard_normal((6, 6)) + np.arange(6)).astype(np.float32)
    is_used = rng.random(3000) < 0.9
    table[~is_used] = 1e3
    read = []

    def rows(start, stop):
        read.append(stop - start)
        return table[start:stop]

    found = new_rows.sample_rows(rows, is_used, 200_000, np.random.default_rng(1))
    assert found.dtype == np.float32 and max(read) <= chunk and sum(read) == 2 * 3000
    used = table[is_used]
    np.testing.assert_allclose(found.mean(axis=0), used.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(np.cov(found.T), np.cov(used.T), atol=0.15)


def test_fewer_rows_than_columns_are_enough():
    table = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    found = new_rows.sample_rows(lambda start, stop: table[start:stop], np.ones(5, bool), 50, np.random.default_rng(1))
    # In the space that the rows span.
    centered = (table - table.mean(axis=0)).astype(np.float64)
    outside = (found - table.mean(axis=0)) @ (np.eye(16) - np.linalg.pinv(centered, rcond=1e-5) @ centered)
    assert np.abs(outside).max() < 0.05 and found.std() > 0.3
