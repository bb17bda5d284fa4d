"""Guidance and sampling, against plain NumPy written from the papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.sampling import (
    SamplingParams,
    contrastive_scores,
    edit_guided_logits,
    guided_logits,
    keep_top_k,
    keep_top_p,
    process_logits,
    sample_tokens,
)


def random_logits(*shape: int, seed: int = 0) -> np.ndarray:
    return (2 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_guidance_is_equation_1():
    conditional, unconditional = random_logits(2, 3, 7)
    scales = jnp.array([[1.0], [3.0], [0.0]])
    found = guided_logits(jnp.asarray(conditional), jnp.asarray(unconditional), scales)
    expected = unconditional + np.asarray(scales) * (conditional - unconditional)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found[0], conditional[0], rtol=1e-5)
    np.testing.assert_allclose(found[2], unconditional[2], rtol=1e-5)


def test_edit_guidance_moves_to_the_image_then_to_the_text():
    full, image, nothing = random_logits(3, 2, 7)
    found = edit_guided_logits(jnp.asarray(full), jnp.asarray(image), jnp.asarray(nothing), 7.5, 1.5)
    np.testing.assert_allclose(found, nothing + 1.5 * (image - nothing) + 7.5 * (full - image), rtol=1e-4)
    # Both weights 1: the prompt alone.
    alone = edit_guided_logits(jnp.asarray(full), jnp.asarray(image), jnp.asarray(nothing), 1.0, 1.0)
    np.testing.assert_allclose(alone, full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 4, 50])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_contrastive_decoding_is_equation_3(k, alpha):
    expert, amateur = random_logits(2, 3, 12)
    found = np.asarray(contrastive_scores(jnp.asarray(expert), jnp.asarray(amateur), k, alpha))
    for row in range(3):
        p, q = softmax(expert[row]), softmax(amateur[row])
        kth_largest = sorted(p, reverse=True)[min(k, 12) - 1]
        likely = p >= alpha * kth_largest * (1 - 1e-6)
        np.testing.assert_array_equal(np.isfinite(found[row]), likely)
        np.testing.assert_allclose(found[row, likely], (np.log(p) - np.log(q))[likely], atol=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.floats(0.0, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, top_p):
    logits = random_logits(1, 12, seed=seed)
    logits[0, :3] = -np.inf
    kept = np.isfinite(np.asarray(keep_top_p(jnp.asarray(logits), top_p)))[0]
    probabilities = softmax(logits)[0]
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    size = max(1, int((before < top_p - 1e-6).sum()))
    # A set whose sum is top_p to the last digits may be taken either way.
    assert set(order[:size]) <= set(np.flatnonzero(kept)) <= set(order[: max(1, int((before < top_p + 1e-6).sum()))])


@pytest.mark.parametrize("top_k", [1, 3, 20])
def test_top_k_keeps_the_k_likeliest(top_k):
    logits = random_logits(4, 9)
    kept = np.isfinite(np.asarray(keep_top_k(jnp.asarray(logits), top_k)))
    for row in range(4):
        assert set(np.flatnonzero(kept[row])) == set(np.argsort(-logits[row])[:top_k])


def test_scores_of_a_mixed_batch():
    """Guidance and filters in one row, CD-K in the other, and nothing illegal in either."""
    logits = random_logits(2, 2, 12)
    legal = np.ones((2, 12), bool)
    legal[:, [2, 7]] = False
    sampling = SamplingConfig(
        temperature=0.7, top_p=0.8, contrastive_k=3, contrastive_alpha=0.4, amateur_temperature=0.5
    )
    scales, is_contrastive = jnp.array([3.0, 3.0]), jnp.array([False, True])
    found = process_logits(
        jnp.asarray(logits), jnp.asarray(legal), scales, jnp.ones(2), is_contrastive, SamplingParams.of(sampling)
    )
    guided = np.where(legal[0], logits[0, 1] + 3.0 * (logits[0, 0] - logits[0, 1]), -np.inf)[None] / 0.7
    np.testing.assert_allclose(found[0], keep_top_p(jnp.asarray(guided), 0.8)[0], rtol=1e-4)
    expert = np.where(legal[1], logits[1, 0], -np.inf)[None] / 0.7
    contrasted = contrastive_scores(jnp.asarray(expert), jnp.asarray(logits[1:, 1] / 0.5), 3, 0.4)
    np.testing.assert_allclose(found[1], contrasted[0], rtol=1e-4)
    assert not np.isfinite(np.asarray(found))[~legal].any()


def frequencies(logits: jax.Array, number: int = 20_000) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), number)
    sampled = sample_tokens(keys, jnp.broadcast_to(logits, (number, len(logits))), greedy=False)
    return np.bincount(sampled, minlength=len(logits)) / number


def test_samples_follow_the_softmax():
    logits = jnp.array([0.0, 1.0, 2.0, -jnp.inf])
    np.testing.assert_allclose(frequencies(logits), jax.nn.softmax(logits), atol=0.015)
    # More than one block of tokens.
    many = jnp.asarray(random_logits(300))
    np.testing.assert_allclose(frequencies(many), jax.nn.softmax(many), atol=0.015)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.5, 60.0))
def test_what_has_no_probability_is_never_sampled(seed, spread):
    logits = random_logits(64, 300, seed=seed) * spread
    logits[np.random.default_rng(seed).random(logits.shape) < 0.9] = -np.inf
    logits[:, 17] = 0.0
    sampled = np.asarray(sample_tokens(jax.random.split(jax.random.key(seed), 64), jnp.asarray(logits), greedy=False))
    assert np.isfinite(logits[np.arange(64), sampled]).all()


def test_greedy_is_the_likeliest():
    logits = jax.random.normal(jax.random.key(1), (5, 9))
    keys = jax.random.split(jax.random.key(2), 5)
    np.testing.assert_array_equal(sample_tokens(keys, logits, greedy=True), logits.argmax(-1))
