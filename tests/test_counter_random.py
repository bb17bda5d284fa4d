"""Counter-based randomness: permutations are permutations, keys are independent."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cm3leon_jax.counter_random import generator, hash64, permutation_at, restart, uniform


@given(st.integers(1, 5000), st.integers(-(2**40), 2**40))
def test_a_permutation_visits_everything_once(size, key):
    assert sorted(permutation_at(np.arange(size), size, key).tolist()) == list(range(size))


def test_any_index_can_be_asked_alone():
    whole = permutation_at(np.arange(1000), 1000, 5, 6)
    assert permutation_at(np.array([17, 400]), 1000, 5, 6).tolist() == whole[[17, 400]].tolist()


def test_an_array_of_keys_chooses_the_permutation_by_index():
    index, epoch = np.arange(300) % 100, np.arange(300) // 100
    mixed = permutation_at(index, 100, 9, epoch)
    for e in range(3):
        np.testing.assert_array_equal(mixed[epoch == e], permutation_at(np.arange(100), 100, 9, e))


def test_a_corpus_of_billions_needs_no_table():
    size = 5_000_000_000
    found = permutation_at(np.arange(10_000), size, 1)
    assert len(np.unique(found)) == 10_000
    assert found.max() < size
    assert abs(found.mean() / size - 0.5) < 0.02


def test_neighboring_keys_are_unrelated():
    a, b = uniform(1, np.arange(50_000)), uniform(2, np.arange(50_000))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.02
    assert abs(a.mean() - 0.5) < 0.01
    assert hash64(1, 2) != hash64(2, 1)
    assert generator(4, 5).integers(1 << 40) == generator(4, 5).integers(1 << 40)


def test_a_generator_that_restarts_is_a_new_one():
    used = generator(1)
    # An odd number of 32-bit draws, so that half a draw is left over.
    used.integers(1 << 20, size=3, dtype=np.int32)
    for key in (2, 3):
        restart(used, hash64(5, np.arange(4))[key])
        new = generator(5, key)
        assert used.permutation(9).tolist() == new.permutation(9).tolist()
        assert used.random(5).tolist() == new.random(5).tolist()
