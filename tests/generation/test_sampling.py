"""Guidance and sampling, against plain NumPy written from the definitions."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.generation.sampling import guided_logits, keep_top_p, sample


def test_guidance_is_equation_1():
    conditional, unconditional = np.random.default_rng(0).normal(size=(2, 3, 7)).astype(np.float32)
    scales = jnp.array([[1.0], [3.0], [0.0]])
    found = guided_logits(jnp.asarray(conditional), jnp.asarray(unconditional), scales)
    expected = unconditional + np.asarray(scales) * (conditional - unconditional)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found[0], conditional[0], rtol=1e-6)
    np.testing.assert_allclose(found[2], unconditional[2], rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.05, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, top_p):
    logits = np.random.default_rng(seed).normal(size=(1, 12)).astype(np.float32) * 2
    kept = np.isfinite(np.asarray(keep_top_p(jnp.asarray(logits), top_p)))[0]
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum()
    order = np.argsort(-probabilities)
    size = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    assert set(np.flatnonzero(kept)) == set(order[:size])


def test_samples_follow_the_softmax():
    logits = jnp.broadcast_to(jnp.array([0.0, 1.0, 2.0, -jnp.inf]), (20_000, 4))
    keys = jax.random.split(jax.random.key(0), 20_000)
    shares = np.bincount(sample(keys, logits, temperature=1.0, top_p=1.0), minlength=4) / 20_000
    np.testing.assert_allclose(shares, jax.nn.softmax(logits[0]), atol=0.015)
    cold = np.bincount(sample(keys, logits, temperature=0.5, top_p=1.0), minlength=4) / 20_000
    np.testing.assert_allclose(cold, jax.nn.softmax(2 * logits[0]), atol=0.015)


def test_temperature_zero_is_greedy():
    logits = jax.random.normal(jax.random.key(1), (5, 9))
    keys = jax.random.split(jax.random.key(2), 5)
    np.testing.assert_array_equal(sample(keys, logits, temperature=0.0, top_p=1.0), logits.argmax(-1))
