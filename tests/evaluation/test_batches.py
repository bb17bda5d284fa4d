"""Values of many items in batches, as one process has them, and as several do that each have some of the batches."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import batches


@pytest.mark.parametrize("num", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_each_item_has_its_value(num: int, batch_size: int) -> None:
    seen = []

    def double(batch: slice) -> list[int]:
        seen.append(batch)
        return [2 * number for number in range(batch.start, batch.stop)]

    assert batches.item_values(double, num, batch_size, "doubles") == [2 * number for number in range(num)]
    assert all(0 < batch.stop - batch.start <= batch_size for batch in seen)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 9])
def test_processes_get_what_one_gets(count: int, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(batches, "all_processes", lambda value: value)

    def values(batch: slice) -> list[list[float | str]]:
        return [[number / 3, "x" * number] for number in range(batch.start, batch.stop)]

    def vectors(batch: slice) -> np.ndarray:
        return np.arange(batch.start, batch.start + 2, dtype=np.float32)[:, None]

    # What each process has, one after the other, and then all of it at once.
    own_values, own_rows = [], []
    for process in range(count):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        own_values.append([list(batch) for batch in batches.own_batches(values, num, 2, "values")])
        own_rows.append(np.stack(batches.own_batches(vectors, num, 2, "rows")))
    with monkeypatch.context() as patch:
        patch.setattr(batches, "_gathered_values", lambda own: own_values)
        assert batches.item_values(values, num, 2, "values") == values(slice(0, num))
    num_batches = -(-num // 2)

    def gathered(padded: np.ndarray) -> np.ndarray:
        everyone = np.zeros((count, *padded.shape), np.float32)
        for process, rows in enumerate(own_rows):
            everyone[process, : len(rows)] = rows[: len(padded)]
        return everyone

    monkeypatch.setattr(batches.multihost_utils, "process_allgather", gathered)
    assert padded_rows(own_rows[0], num_batches)[:num].tolist() == list(range(num))


def padded_rows(own: np.ndarray, num_batches: int) -> np.ndarray:
    return batches._gathered_rows(own, num_batches).reshape(-1)


def test_one_that_is_refused_is_refused_for_all() -> None:
    def refuses(batch: slice) -> list[int]:
        if batch.start:
            raise UserError("the image 2.png cannot be read")
        return [1, 2]

    with pytest.raises(UserError, match="the image 2"):
        batches.item_values(refuses, 3, 2, "values")
