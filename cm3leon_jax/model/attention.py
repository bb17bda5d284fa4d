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


def rotary_angles(
    positions: Int[Array, "B L"], picture_places: Int[Array, "B L"] | None, head_dim: int
) -> Float[Array, "B L P"]:
    """How far each pair of a head is turned at each token (Su et al., arXiv 2104.09864, section 3.2.2).

    Given picture places, every other pair turns by those instead: the same place of two pictures is then the same
    distance apart wherever the pictures stand (as the axes of Qwen2-VL share the pairs, arXiv 2409.12191, section 2.1).
    """
    half, pair = head_dim // 2, jnp.arange(head_dim // 2)
    if picture_places is None:
        return positions[..., None] * 10_000.0 ** (-pair / half)
    by = jnp.where(pair % 2 == 0, picture_places[..., None], positions[..., None])
    # Either kind has frequencies from the highest on.
    return by * 10_000.0 ** (-(pair - pair % 2) / half)


def rotate(x: Float[Array, "B L H Dh"], angles: Float[Array, "B L P"]) -> Float[Array, "B L H Dh"]:
    """Turns the pairs (i, i + Dh/2) of each head by `rotary_angles`: RoPE (arXiv 2104.09864, equation 34)."""
    half = x.shape[-1] // 2
    sin, cos = jnp.sin(angles)[:, :, None].astype(x.dtype), jnp.cos(angles)[:, :, None].astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
