"""Attention with one mask description: causal, and nothing before the start of the query's own document."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def attention_mask(
    query_index: Int[Array, "B L"], document_start: Int[Array, "B L"], num_keys: int
) -> Bool[Array, "B L S"]:
    """Which keys each query sees: document_start <= key <= query_index, all three indices into the same sequence."""
    key_index = jnp.arange(num_keys)
    return (key_index <= query_index[..., None]) & (key_index >= document_start[..., None])


def attention_scores(query: Float[Array, "B H L Dh"], key: Float[Array, "B H S Dh"]) -> Float[Array, "B H L S"]:
    """Scaled dot products, float32."""
    scale = query.shape[-1] ** -0.5
    return jnp.einsum("BHLd,BHSd->BHLS", query * scale, key, preferred_element_type=jnp.float32)


def attention_weights(scores: Float[Array, "B H L S"], mask: Bool[Array, "B L S"]) -> Float[Array, "B H L S"]:
    """Softmax over the keys that the mask lets through, float32."""
    return jax.nn.softmax(jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min), axis=-1)


def attention(
    query: Float[Array, "B L H Dh"],
    key: Float[Array, "B S H Dh"],
    value: Float[Array, "B S H Dh"],
    mask: Bool[Array, "B L S"],
) -> Float[Array, "B L H Dh"]:
    """Scaled dot-product attention; the softmax is float32 whatever the inputs are."""
    scores = attention_scores(jnp.swapaxes(query, 1, 2), jnp.swapaxes(key, 1, 2))
    return jnp.einsum("BHLS,BSHd->BLHd", attention_weights(scores, mask).astype(value.dtype), value)


def rotate(x: Float[Array, "B L H Dh"], positions: Int[Array, "B L"]) -> Float[Array, "B L H Dh"]:
    """Turns the pairs (i, i + Dh/2) of each head by its position: RoPE (Su et al., arXiv 2104.09864, equation 34)."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / half)
    angles = (positions[..., None] * frequencies)[:, :, None]
    sin, cos = jnp.sin(angles).astype(x.dtype), jnp.cos(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
