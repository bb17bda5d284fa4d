"""Running means, use and revival of codes, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.image_tokenizers.vqgan import codebook

RANDOM = np.random.default_rng(0)
EMBEDDING = RANDOM.normal(size=(5, 3)).astype(np.float32)
LATENTS = RANDOM.normal(size=(40, 3)).astype(np.float32)
CODES = RANDOM.integers(0, 4, 40)  # Code 4 is never used.


def test_means_follow_the_running_averages() -> None:
    statistics = codebook.initial_statistics(jnp.asarray(EMBEDDING), 40)
    embedding = jnp.asarray(EMBEDDING)
    usage, sums = np.full(5, 8.0), 8.0 * EMBEDDING
    for shift in (0.0, 1.0):
        statistics, embedding = codebook.update_means(
            statistics, embedding, jnp.asarray(LATENTS + shift), jnp.asarray(CODES), 0.9
        )
        for code in range(5):
            mine = LATENTS[code == CODES] + np.float32(shift)
            usage[code] = 0.9 * usage[code] + 0.1 * len(mine)
            sums[code] = 0.9 * sums[code] + 0.1 * mine.sum(0)
    np.testing.assert_allclose(statistics.usage, usage, rtol=1e-5)
    np.testing.assert_allclose(embedding, sums / usage[:, None], rtol=1e-4)
    np.testing.assert_allclose(embedding[4], EMBEDDING[4], rtol=1e-5)


def test_a_code_never_used_stays_finite_and_in_place() -> None:
    statistics = codebook.CodebookStatistics(usage=jnp.zeros(5), sums=jnp.zeros((5, 3)))
    _, embedding = codebook.update_means(
        statistics, jnp.asarray(EMBEDDING), jnp.asarray(LATENTS), jnp.asarray(CODES), 0.9
    )
    np.testing.assert_array_equal(embedding[4], EMBEDDING[4])
    assert np.isfinite(embedding).all()


def test_dead_codes_land_on_latents_and_live_ones_stay() -> None:
    usage = jnp.array([3.0, 0.1, 2.0, 0.0, 0.5])
    statistics = codebook.CodebookStatistics(usage=usage, sums=usage[:, None] * EMBEDDING)
    revived, embedding = codebook.revive_dead_codes(
        statistics, jnp.asarray(EMBEDDING), jnp.asarray(LATENTS), 0.5, jax.random.key(0)
    )
    for dead in (1, 3):
        assert (np.asarray(embedding[dead]) == LATENTS).all(axis=1).any()
        np.testing.assert_allclose(revived.sums[dead] / revived.usage[dead], embedding[dead], rtol=1e-6)
    assert not np.array_equal(embedding[1], embedding[3])
    for live in (0, 2, 4):
        np.testing.assert_array_equal(embedding[live], EMBEDDING[live])
        assert revived.usage[live] == usage[live]
    # Unused in its new place, a code is found dead again.
    idle = codebook.update_usage(revived, jnp.zeros(5, jnp.int32), 0.9)
    assert idle.usage[1] < 0.5


def test_latents_are_picked_once_each_while_there_are_enough() -> None:
    picked = codebook.sample_latents(jnp.asarray(LATENTS), 40, jax.random.key(1))
    np.testing.assert_array_equal(np.unique(picked, axis=0), np.unique(LATENTS, axis=0))
    assert codebook.sample_latents(jnp.asarray(LATENTS[:3]), 7, jax.random.key(1)).shape == (7, 3)


@pytest.mark.parametrize(("counts", "expected"), [([5, 5, 5, 5], 4.0), ([9, 0, 0, 0], 1.0), ([1, 1, 0, 0], 2.0)])
def test_perplexity(counts: list[int], expected: float) -> None:
    assert codebook.perplexity(jnp.array(counts)) == pytest.approx(expected, rel=1e-5)
