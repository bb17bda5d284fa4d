"""From logits to a token: guidance, temperature, top-p."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def guided_logits(
    conditional: Float[Array, "B V"], unconditional: Float[Array, "B V"], scale: Float[Array, "B 1"] | float
) -> Float[Array, "B V"]:
    """Classifier-free guidance: from the unconditional towards the conditional logits (arXiv 2309.02591, eq. 1)."""
    return unconditional + scale * (conditional - unconditional)


def keep_top_p(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
    """Minus infinity for all but the likeliest tokens: one stays while those before it sum to less than `top_p`."""
    descending = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The first token always stays, so that top_p = 0 is greedy.
    kept = (before < top_p).at[:, 0].set(True)
    threshold = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def sample(keys: Key[Array, "B"], logits: Float[Array, "B V"], temperature: float, top_p: float) -> Int[Array, "B"]:
    """One token a row; the likeliest where `temperature` is 0."""
    if temperature == 0:
        return logits.argmax(axis=-1)
    logits = logits / temperature
    if top_p < 1:
        logits = keep_top_p(logits, top_p)
    return jax.vmap(jax.random.categorical)(keys, logits)
