"""Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, section 3.2.1) with one mask: causal, per document.

Keys and values may have fewer heads than queries (arXiv 2305.13245). Public functions take tokens before heads,
[B L H Dh]; inside, heads come first, [B H L Dh], so that a head's matmul reads contiguous memory.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cm3leon_jax.models import cpu, fused_attention
from cm3leon_jax.models.sharding import platform

# The XLA implementation goes through the queries in this many blocks, unless they would be shorter than that.
_QUERY_BLOCKS, _MIN_QUERY_BLOCK = 8, 128


def attention_mask(
    query_index: Int[Array, "B L"], document_start: Int[Array, "B L"], num_keys: int
) -> Bool[Array, "B L S"]:
    """Which keys each query sees: document_start <= key <= query_index, all three indices into the same sequence."""
    key_index = jnp.arange(num_keys)
    return (key_index <= query_index[..., None]) & (key_index >= document_start[..., None])


def attention_logits(query: Float[Array, "B H L Dh"], key: Float[Array, "B K S Dh"]) -> Float[Array, "B H L S"]:
    """Scaled dot products, float32; each key head serves a group of query heads."""
    B, H, L, Dh = query.shape
    # The query heads of a key head side by side: one matmul per key head.
    grouped = (query * Dh**-0.5).reshape(B, key.shape[1], -1, Dh)
    logits = jnp.einsum("BKld,BKSd->BKlS", grouped, key, preferred_element_type=jnp.float32)
    return logits.reshape(B, H, L, key.shape[2])


def attention_weights(logits: Float[Array, "B H L S"], mask: Bool[Array, "B L S"]) -> Float[Array, "B H L S"]:
    """Softmax over the keys that the mask lets through, float32."""
    return jax.nn.softmax(jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min), axis=-1)


def weighted_values(weights: Float[Array, "B H L S"], value: Float[Array, "B K S Dh"]) -> Float[Array, "B H L Dh"]:
    """The sum of the values, weighted per query."""
    B, H, L, S = weights.shape
    grouped = weights.astype(value.dtype).reshape(B, value.shape[1], -1, S)
    return jnp.einsum("BKlS,BKSd->BKld", grouped, value).reshape(B, H, L, -1)


def masked_attention(
    query: Float[Array, "B L H Dh"],
    key: Float[Array, "B S K Dh"],
    value: Float[Array, "B S K Dh"],
    mask: Bool[Array, "B L S"],
) -> Float[Array, "B L H Dh"]:
    """Attention under any mask."""
    return _tokens_first(_masked, query, key, value, mask)


def attention(
    query: Float[Array, "B L H Dh"],
    key: Float[Array, "B L K Dh"],
    value: Float[Array, "B L K Dh"],
    document_start: Int[Array, "B L"],
    implementation: str = "xla",
) -> Float[Array, "B L H Dh"]:
    """Causal attention within documents; the softmax is float32 whatever the inputs are.

    Args:
      document_start: index of the first token that each query may attend to.
      implementation: "xla", the reference; a fused one (`fused_attention.py`), "splash" (TPU) or "tokamax" (GPU); or
        "auto", the fused one that the devices of the context's mesh have.
    """
    implementation = _fastest() if implementation == "auto" else implementation
    return _tokens_first(_IMPLEMENTATIONS[implementation], query, key, value, document_start)


def _fastest() -> str:
    if platform() == "tpu":
        return "splash"
    return "tokamax" if platform() in ("gpu", "cuda") and find_spec("tokamax") else "xla"


def _tokens_first(attend: Callable[..., Array], query: Array, key: Array, value: Array, *others: Array) -> Array:
    return jnp.swapaxes(attend(*(jnp.swapaxes(x, 1, 2) for x in (query, key, value)), *others), 1, 2)


def _masked(query: Array, key: Array, value: Array, mask: Array) -> Array:
    return weighted_values(attention_weights(attention_logits(query, key), mask), value)


def _masked_forward(query: Array, key: Array, value: Array, mask: Array) -> tuple[Array, tuple[Array, ...]]:
    weights = attention_weights(attention_logits(query, key), mask)
    out = weighted_values(weights, value)
    return out, (query, key, value, weights, out)


_masked_on_cpu = jax.custom_vjp(_masked)
_masked_on_cpu.defvjp(_masked_forward, cpu.attention_vjp)


def _xla_attention(query: Array, key: Array, value: Array, document_start: Array) -> Array:
    L = query.shape[2]
    attend = _masked_on_cpu if platform() == "cpu" else _masked
    # In blocks of queries: keys after a block's end are masked for all of it, which saves nearly half of the logits.
    size = L if L % _QUERY_BLOCKS else max(L // _QUERY_BLOCKS, min(L, _MIN_QUERY_BLOCK))
    blocks = []
    for first in range(0, L, size):
        block = slice(first, min(first + size, L))
        start = document_start[:, block]
        mask = attention_mask(jnp.broadcast_to(jnp.arange(L)[block], start.shape), start, block.stop)
        blocks.append(attend(query[:, :, block], key[:, :, : block.stop], value[:, :, : block.stop], mask))
    return jnp.concatenate(blocks, axis=2)


_IMPLEMENTATIONS: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "xla": _xla_attention,
    "splash": fused_attention.splash_attention,
    "tokamax": fused_attention.tokamax_attention,
}
