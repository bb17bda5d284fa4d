"""The reference attention, against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from cm3leon_jax.model.attention import attention, rotary_angles, rotate


def test_against_a_loop():
    B, L, H, Dh = 2, 7, 3, 4
    query, key, value = (jax.random.normal(jax.random.key(i), (B, L, H, Dh)) for i in range(3))
    start = jnp.array([[0, 0, 0, 3, 3, 3, 6], [0, 1, 1, 1, 4, 4, 4]])
    found = attention(query, key, value, start)
    for b in range(B):
        for i in range(L):
            for h in range(H):
                seen = slice(start[b, i], i + 1)
                scores = np.asarray(key[b, seen, h] @ query[b, i, h]) / np.sqrt(Dh)
                weights = np.exp(scores - scores.max())
                expected = (weights / weights.sum()) @ value[b, seen, h]
                np.testing.assert_allclose(found[b, i, h], expected, atol=1e-5)


def turned_score(at: tuple[int, int], key_at: tuple[int, int], with_pictures: bool):
    """The product of a query and a key, each at a position and a picture place."""
    turned = []
    for seed, (position, place) in enumerate((at, key_at)):
        x = jax.random.normal(jax.random.key(seed), (1, 1, 2, 8))
        angles = rotary_angles(jnp.array([[position]]), jnp.array([[place]]) if with_pictures else None, 8)
        turned.append(rotate(x, angles))
    return jnp.einsum("BLHd,BLHd->H", *turned)


def test_rotary_scores_depend_on_the_distance_alone():
    def score(query: int, key: int):
        return turned_score((query, 7), (key, 3), with_pictures=False)

    np.testing.assert_allclose(score(9, 4), score(25, 20), atol=1e-4)
    assert jnp.abs(score(9, 4) - score(9, 5)).max() > 1e-2
    np.testing.assert_allclose(score(9, 4), turned_score((9, 0), (4, 0), with_pictures=False))
    query = jax.random.normal(jax.random.key(0), (1, 1, 2, 8))
    np.testing.assert_array_equal(rotate(query, rotary_angles(jnp.array([[0]]), None, 8)), query)


def test_with_pictures_scores_depend_on_the_distance_in_the_document_and_that_in_the_pictures():
    near = turned_score((90, 12), (20, 11), with_pictures=True)
    np.testing.assert_allclose(near, turned_score((80, 5), (10, 4), with_pictures=True), atol=1e-4)
    for other in ((90, 12), (20, 10)), ((91, 12), (20, 11)):
        assert jnp.abs(near - turned_score(*other, with_pictures=True)).max() > 1e-2
