"""The key/value cache of one layer: written in place, read by every later token."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from cm3leon_jax.models.attention import attention_logits, attention_weights, weighted_values


class LayerCache(NamedTuple):
    """Keys and values of S slots, heads before slots so that a step reads each head's memory in one sweep.

    An int8 cache holds each vector divided by its own largest entry, and that scale beside it.
    """

    key: Num[Array, "B K S Dh"]
    value: Num[Array, "B K S Dh"]
    key_scale: Float[Array, "B K S"] | None = None
    value_scale: Float[Array, "B K S"] | None = None

    @classmethod
    def empty(cls, batch_size: int, num_heads: int, length: int, head_dim: int, dtype: str) -> LayerCache:
        """Allocates `length` slots per row; `dtype` is a float type or "int8"."""
        shape = (batch_size, num_heads, length, head_dim)
        scale = jnp.zeros(shape[:3]) if dtype == "int8" else None
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), scale, scale)

    def write(
        self,
        key: Float[Array, "B L K Dh"],
        value: Float[Array, "B L K Dh"],
        index: Int[Array, ""] | Int[Array, "B"],
        present: Bool[Array, "B L"],
    ) -> LayerCache:
        """Writes L tokens from slot `index` on, one for all rows or one per row; tokens not `present` are skipped."""
        entries = LayerCache(jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2))
        if self.key_scale is not None:
            (key, key_scale), (value, value_scale) = _quantize(entries.key), _quantize(entries.value)
            entries = LayerCache(key, value, key_scale, value_scale)
        return jax.tree.map(lambda stored, new: _write_slots(stored, new, index, present), self, entries)

    def attend(self, query: Float[Array, "B L H Dh"], mask: Bool[Array, "B L S"]) -> Float[Array, "B L H Dh"]:
        """Attends to all slots that the mask lets through."""
        logits = attention_logits(jnp.swapaxes(query, 1, 2), self.key.astype(query.dtype))
        if self.key_scale is not None:
            logits = logits * _per_query_head(self.key_scale, query.shape[2])
        weights = attention_weights(logits, mask)
        if self.value_scale is not None:
            weights = weights * _per_query_head(self.value_scale, query.shape[2])
        return jnp.swapaxes(weighted_values(weights, self.value.astype(query.dtype)), 1, 2)


def grown(cache: tuple[LayerCache, ...], num_slots: int) -> tuple[LayerCache, ...]:
    """The same cache, padded to more slots."""

    def pad(array: Array) -> Array:
        return jnp.pad(array, [(0, 0), (0, 0), (0, num_slots - array.shape[2]), *[(0, 0)] * (array.ndim - 3)])

    return jax.tree.map(pad, cache)


def _per_query_head(scale: Float[Array, "B K S"], num_heads: int) -> Float[Array, "B H 1 S"]:
    return jnp.repeat(scale, num_heads // scale.shape[1], axis=1)[:, :, None]


def _quantize(x: Float[Array, "B K L Dh"]) -> tuple[Num[Array, "B K L Dh"], Float[Array, "B K L"]]:
    """int8 values and their scales, whose product is about x."""
    x32 = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x32).max(axis=-1), 1e-8) / 127
    return jnp.round(x32 / scale[..., None]).astype(jnp.int8), scale


def _write_slots(
    stored: Num[Array, "B K S ..."],
    new: Num[Array, "B K L ..."],
    index: Int[Array, ""] | Int[Array, "B"],
    present: Bool[Array, "B L"],
) -> Num[Array, "B K S ..."]:
    new, L = new.astype(stored.dtype), new.shape[2]
    if index.ndim == 0 and L == 1:
        # The common step: one write for the whole batch, in place.
        return jax.lax.dynamic_update_slice_in_dim(stored, new, index, axis=2)

    def write_row(row: Array, new: Array, index: Array, present: Array) -> Array:
        if L > 1:
            old = jax.lax.dynamic_slice_in_dim(row, index, L, axis=1)
            new = jnp.where(present.reshape(1, L, *[1] * (new.ndim - 2)), new, old)
        return jax.lax.dynamic_update_slice_in_dim(row, new, index, axis=1)

    return jax.vmap(write_row)(stored, new, jnp.broadcast_to(index, stored.shape[:1]), present)
