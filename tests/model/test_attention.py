"""The reference attention, against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from cm3leon_jax.model.attention import attention, attention_mask, rotate


def test_against_a_loop():
    B, L, H, Dh = 2, 7, 3, 4
    query, key, value = (jax.random.normal(jax.random.key(i), (B, L, H, Dh)) for i in range(3))
    start = jnp.array([[0, 0, 0, 3, 3, 3, 6], [0, 1, 1, 1, 4, 4, 4]])
    index = jnp.broadcast_to(jnp.arange(L), (B, L))
    found = attention(query, key, value, attention_mask(index, start, L))
    for b in range(B):
        for i in range(L):
            for h in range(H):
                seen = slice(start[b, i], i + 1)
                scores = np.asarray(key[b, seen, h] @ query[b, i, h]) / np.sqrt(Dh)
                weights = np.exp(scores - scores.max())
                expected = (weights / weights.sum()) @ value[b, seen, h]
                np.testing.assert_allclose(found[b, i, h], expected, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = (jax.random.normal(jax.random.key(i), (1, 1, 2, 8)) for i in range(2))

    def score(query_position: int, key_position: int):
        turned = rotate(query, jnp.array([[query_position]])), rotate(key, jnp.array([[key_position]]))
        return jnp.einsum("BLHd,BLHd->H", *turned)

    np.testing.assert_allclose(score(9, 4), score(25, 20), atol=1e-4)
    assert jnp.abs(score(9, 4) - score(9, 5)).max() > 1e-2
    np.testing.assert_array_equal(rotate(query, jnp.array([[0]])), query)
