"""Attention with one mask description: causal, and nothing before the start of the query's own document."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cm3leon_jax.models import fused_attention
from cm3leon_jax.models.projection import over_tokens
from cm3leon_jax.models.sharding import platform

# The reference goes through the queries in this many blocks, unless they would be shorter than that.
_QUERY_BLOCKS, _SMALLEST_QUERY_BLOCK = 8, 128


def attention_mask(
    query_index: Int[Array, "B L"], document_start: Int[Array, "B L"], num_keys: int
) -> Bool[Array, "B L S"]:
    """Which keys each query sees: document_start <= key <= query_index, all three indices into the same sequence."""
    key_index = jnp.arange(num_keys)
    return (key_index <= query_index[..., None]) & (key_index >= document_start[..., None])


def attention_scores(query: Float[Array, "B H L Dh"], key: Float[Array, "B K S Dh"]) -> Float[Array, "B H L S"]:
    """Scaled dot products, float32; each key head serves a group of query heads."""
    B, H, L, Dh = query.shape
    # A group's queries side by side: one product a key head.
    grouped = (query * Dh**-0.5).reshape(B, key.shape[1], -1, Dh)
    scores = jnp.einsum("BKld,BKSd->BKlS", grouped, key, preferred_element_type=jnp.float32)
    return scores.reshape(B, H, L, key.shape[2])


def attention_weights(scores: Float[Array, "B H L S"], mask: Bool[Array, "B L S"]) -> Float[Array, "B H L S"]:
    """Softmax over the keys that the mask lets through, float32."""
    return jax.nn.softmax(jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min), axis=-1)


def weighted_values(weights: Float[Array, "B H L S"], value: Float[Array, "B K S Dh"]) -> Float[Array, "B H L Dh"]:
    """What each query reads: the sum of the values by its weights."""
    B, H, L, S = weights.shape
    grouped = weights.astype(value.dtype).reshape(B, value.shape[1], -1, S)
    return jnp.einsum("BKlS,BKSd->BKld", grouped, value).reshape(B, H, L, -1)


def masked_attention(
    query: Float[Array, "B L H Dh"],
    key: Float[Array, "B S K Dh"],
    value: Float[Array, "B S K Dh"],
    mask: Bool[Array, "B L S"],
) -> Float[Array, "B L H Dh"]:
    """Scaled dot-product attention under any mask."""
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(weighted_values(attention_weights(attention_scores(query, key), mask), value), 1, 2)


def attention(
    query: Float[Array, "B L H Dh"],
    key: Float[Array, "B L K Dh"],
    value: Float[Array, "B L K Dh"],
    document_start: Int[Array, "B L"],
    implementation: str = "xla",
) -> Float[Array, "B L H Dh"]:
    """Scaled dot-product attention within documents; the softmax is float32 whatever the inputs are.

    Args:
      query, key, value: of the same L tokens; K heads of keys and values, each for H/K query heads.
      document_start: index of the first token that each may attend to.
      implementation: "xla", the reference; a fused one (`fused_attention.py`), "splash" (TPU) or "tokamax" (GPU); or
        "auto", the fused one that the devices of the context's mesh have.
    """
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    implementation = _fastest() if implementation == "auto" else implementation
    return jnp.swapaxes(_IMPLEMENTATIONS[implementation](query, key, value, document_start), 1, 2)


def _fastest() -> str:
    if platform() == "tpu":
        return "splash"
    return "tokamax" if platform() in ("gpu", "cuda") and find_spec("tokamax") else "xla"


def _xla_attention(
    query: Float[Array, "B H L Dh"],
    key: Float[Array, "B K L Dh"],
    value: Float[Array, "B K L Dh"],
    document_start: Int[Array, "B L"],
) -> Float[Array, "B H L Dh"]:
    L = query.shape[2]
    # In blocks of queries, since what lies behind a block's end is masked for all of it: nearly half of the scores.
    size = L if L % _QUERY_BLOCKS else max(L // _QUERY_BLOCKS, min(L, _SMALLEST_QUERY_BLOCK))
    blocks = []
    for first in range(0, L, size):
        block = slice(first, min(first + size, L))
        start = document_start[:, block]
        mask = attention_mask(jnp.broadcast_to(jnp.arange(L)[block], start.shape), start, block.stop)
        blocks.append(_attend(query[:, :, block], key[:, :, : block.stop], value[:, :, : block.stop], mask))
    return jnp.concatenate(blocks, axis=2)


@jax.custom_vjp
def _attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
    return _attend_forward(query, key, value, mask)[0]


def _attend_forward(query: Array, key: Array, value: Array, mask: Array) -> tuple[Array, tuple[Array, ...]]:
    weights = attention_weights(attention_scores(query, key), mask)
    mixed = weighted_values(weights, value)
    return mixed, (query, key, value, weights, mixed)


def _attend_backward(kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array, None]:
    query, key, value, weights, mixed = kept
    # The softmax wants the mean slope of its weights: a sum over Dh numbers of each query's, not over all its keys
    # (FlashAttention, arXiv 2205.14135, appendix B.2).
    mean = (gradient * mixed).astype(jnp.float32).sum(axis=-1, keepdims=True)
    # A group's queries side by side, as in the scores.
    query, weights, mean, grouped_gradient = (
        x.reshape(*key.shape[:2], -1, x.shape[-1]) for x in (query, weights, mean, gradient)
    )
    d_value = over_tokens("BKld,BKlS->BKSd", grouped_gradient, weights.astype(value.dtype))
    d_weights = jnp.einsum("BKld,BKSd->BKlS", grouped_gradient, value, preferred_element_type=jnp.float32)
    d_scores = (weights * (d_weights - mean) * query.shape[-1] ** -0.5).astype(query.dtype)
    d_query = jnp.einsum("BKlS,BKSd->BKld", d_scores, key).reshape(gradient.shape)
    return d_query, over_tokens("BKld,BKlS->BKSd", query, d_scores), d_value, None


_attend.defvjp(_attend_forward, _attend_backward)


_IMPLEMENTATIONS: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "xla": _xla_attention,
    "splash": fused_attention.splash_attention,
    "tokamax": fused_attention.tokamax_attention,
}


def rotary_angles(
    positions: Int[Array, "B L"], image_positions: Int[Array, "B L"] | None, head_dim: int, base: float = 10_000.0
) -> Float[Array, "B L P"]:
    """How far each pair of a head is turned at each token (Su et al., arXiv 2104.09864, section 3.2.2).

    `base` is the longest wavelength of the pairs, in tokens, divided by 2 pi.

    Given image places, every other pair turns by those instead: the same place of two images is then the same
    distance apart wherever the images stand (as the axes of Qwen2-VL share the pairs, arXiv 2409.12191, section 2.1).
    """
    half, pair = head_dim // 2, jnp.arange(head_dim // 2)
    if image_positions is None:
        return positions[..., None] * base ** (-pair / half)
    by = jnp.where(pair % 2 == 0, image_positions[..., None], positions[..., None])
    # Either kind has frequencies from the highest on.
    return by * base ** (-(pair - pair % 2) / half)


def rotate(x: Float[Array, "B L H Dh"], angles: Float[Array, "B L P"]) -> Float[Array, "B L H Dh"]:
    """Turns the pairs (i, i + Dh/2) of each head by `rotary_angles`: RoPE (arXiv 2104.09864, equation 34)."""
    half = x.shape[-1] // 2
    sin, cos = jnp.sin(angles)[:, :, None].astype(x.dtype), jnp.cos(angles)[:, :, None].astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
