"""The key/value cache of one layer: written in place, read by every later token."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from cm3leon_jax.models.attention import attention_scores, attention_weights, weighted_values


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
        """Room for `length` tokens a row; `dtype` is a float type or "int8"."""
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
        """Puts L tokens at slot `index`, one for all rows or one a row; those that are not `present` change nothing."""
        entries = LayerCache(jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2))
        if self.key_scale is not None:
            (key, key_scale), (value, value_scale) = _quantized(entries.key), _quantized(entries.value)
            entries = LayerCache(key, value, key_scale, value_scale)
        return jax.tree.map(lambda stored, new: _put(stored, new, index, present), self, entries)

    def attend(self, query: Float[Array, "B L H Dh"], mask: Bool[Array, "B L S"]) -> Float[Array, "B L H Dh"]:
        """Attention over all slots that the mask lets through."""
        scores = attention_scores(jnp.swapaxes(query, 1, 2), self.key.astype(query.dtype))
        if self.key_scale is not None:
            scores = scores * _of_query_heads(self.key_scale, query.shape[2])
        weights = attention_weights(scores, mask)
        if self.value_scale is not None:
            weights = weights * _of_query_heads(self.value_scale, query.shape[2])
        value = self.value.astype(query.dtype)
        return jnp.swapaxes(weighted_values(weights, value), 1, 2)


def grown(cache: tuple[LayerCache, ...], num_slots: int) -> tuple[LayerCache, ...]:
    """The same cache with room for more."""

    def with_room(array: Array) -> Array:
        spare = [(0, 0), (0, 0), (0, num_slots - array.shape[2]), *[(0, 0)] * (array.ndim - 3)]
        return jnp.pad(array, spare)

    return jax.tree.map(with_room, cache)


def _of_query_heads(scale: Float[Array, "B K S"], num_heads: int) -> Float[Array, "B H 1 S"]:
    return jnp.repeat(scale, num_heads // scale.shape[1], axis=1)[:, :, None]


def _quantized(x: Float[Array, "B K L Dh"]) -> tuple[Num[Array, "B K L Dh"], Float[Array, "B K L"]]:
    """x as int8 and its scales: x is about their product."""
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(axis=-1), 1e-8) / 127
    return jnp.round(wide / scale[..., None]).astype(jnp.int8), scale


def _put(
    stored: Num[Array, "B K S ..."],
    entries: Num[Array, "B K L ..."],
    index: Int[Array, ""] | Int[Array, "B"],
    present: Bool[Array, "B L"],
) -> Num[Array, "B K S ..."]:
    entries = entries.astype(stored.dtype)
    L = entries.shape[2]

    def put_row(row: Array, new: Array, at: Array, is_present: Array) -> Array:
        if L > 1:
            old = jax.lax.dynamic_slice_in_dim(row, at, L, axis=1)
            new = jnp.where(is_present.reshape(1, L, *[1] * (new.ndim - 2)), new, old)
        return jax.lax.dynamic_update_slice_in_dim(row, new, at, axis=1)

    if index.ndim == 0 and L == 1:
        # The common step: one write for the whole batch, in place.
        return jax.lax.dynamic_update_slice_in_dim(stored, entries, index, axis=2)
    return jax.vmap(put_row)(stored, entries, jnp.broadcast_to(index, stored.shape[:1]), present)
