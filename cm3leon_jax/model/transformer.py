"""The CM3Leon transformer (arXiv 2309.02591, section 2.3): OPT's decoder without biases, dropout or learned norms.

Shapes: B batch, L length, S cached length, D model, N layers, H heads, Dh head size, F feed-forward, V vocabulary.
Every parameter carries the logical names of its axes; which mesh axis each falls on is decided in `sharding.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from cm3leon_jax.config import ModelConfig
from cm3leon_jax.model.attention import attention, attention_mask, rotate

# Keys and values of all layers: {"key", "value"}, each [N B S H Dh].
Cache = dict[str, Float[Array, "N B S H Dh"]]
LayerCache = dict[str, Float[Array, "B S H Dh"]]


def _parameter(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, logical_axes: tuple[str, ...]) -> nnx.Param:
    """A truncated normal, cut at 3 standard deviations; zeros where `std` is 0."""
    value = std * jax.random.truncated_normal(rngs.params(), -3.0, 3.0, shape, jnp.float32) if std else jnp.zeros(shape)
    return nnx.Param(value, logical_axes=logical_axes)


def layer_norm(x: Float[Array, "... D"], epsilon: float) -> Float[Array, "... D"]:
    """Layer norm without learned scale and shift, computed in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


class Places(NamedTuple):
    """Where tokens stand: in their document, in the row or the cache, and where there their document starts."""

    position: Int[Array, "B L"]
    row_index: Int[Array, "B L"]
    document_start: Int[Array, "B L"]


class Attention(nnx.Module):
    """Multi-head self-attention; its output projection starts at zero."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, H, Dh = config.model_dim, config.num_heads, config.head_dim
        self.query = _parameter(rngs, (D, H, Dh), config.init_std, ("embed", "heads", "head"))
        self.key = _parameter(rngs, (D, H, Dh), config.init_std, ("embed", "heads", "head"))
        self.value = _parameter(rngs, (D, H, Dh), config.init_std, ("embed", "heads", "head"))
        self.output = _parameter(rngs, (H, Dh, D), 0.0, ("heads", "head", "embed"))
        self.rotary = "rotary" in config.positions

    def __call__(
        self, x: Float[Array, "B L D"], places: Places, cache: LayerCache | None
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        """Attends within x, or, given one layer's cache, writes x into it and attends to all it holds."""
        query = jnp.einsum("BLD,DHd->BLHd", x, self.query[...].astype(x.dtype))
        key = jnp.einsum("BLD,DHd->BLHd", x, self.key[...].astype(x.dtype))
        value = jnp.einsum("BLD,DHd->BLHd", x, self.value[...].astype(x.dtype))
        if self.rotary:
            query, key = rotate(query, places.position), rotate(key, places.position)
        if cache is not None:
            # All rows of a batch write at the same place: prompts are padded on the left.
            at = (0, places.row_index[0, 0], 0, 0)
            key = jax.lax.dynamic_update_slice(cache["key"], key.astype(cache["key"].dtype), at)
            value = jax.lax.dynamic_update_slice(cache["value"], value.astype(cache["value"].dtype), at)
            cache = {"key": key, "value": value}
        mask = attention_mask(places.row_index, places.document_start, key.shape[1])
        mixed = attention(query, key.astype(x.dtype), value.astype(x.dtype), mask)
        return jnp.einsum("BLHd,HdD->BLD", mixed, self.output[...].astype(x.dtype)), cache


class FeedForward(nnx.Module):
    """Two layers with an activation between; the second starts at zero."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, F = config.model_dim, config.hidden_dim
        self.activation = {"relu": jax.nn.relu, "gelu": jax.nn.gelu}[config.activation]
        self.up = _parameter(rngs, (D, F), config.init_std, ("embed", "ffn"))
        self.down = _parameter(rngs, (F, D), 0.0, ("ffn", "embed"))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Applies to each position alone."""
        hidden = self.activation(jnp.einsum("BLD,DF->BLF", x, self.up[...].astype(x.dtype)))
        return jnp.einsum("BLF,FD->BLD", hidden, self.down[...].astype(x.dtype))


class Block(nnx.Module):
    """One pre-norm layer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.attention = Attention(config, rngs)
        self.feed_forward = FeedForward(config, rngs)
        self.epsilon = config.layer_norm_epsilon

    def __call__(
        self, x: Float[Array, "B L D"], places: Places, cache: LayerCache | None
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        """x + attention, then x + feed-forward."""
        mixed, cache = self.attention(layer_norm(x, self.epsilon), places, cache)
        x = x + mixed
        return x + self.feed_forward(layer_norm(x, self.epsilon)), cache


_REMAT_POLICIES = {"none": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class Transformer(nnx.Module):
    """Tokens to hidden states to logits; the embedding table is also the output layer."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, sequence_length: int, rngs: nnx.Rngs) -> None:
        D, V = config.model_dim, vocabulary_size
        self.config = config
        self.token_embedding = _parameter(rngs, (V, D), config.init_std, ("vocab", "embed"))
        if "learned" in config.positions:
            self.position_embedding = _parameter(
                rngs, (sequence_length, D), config.position_init_std, ("position", "embed")
            )

        if config.picture_places:
            # "Nowhere", then the places 0 to K: one follows the last code.
            shape = (config.picture_places + 2, D)
            self.place_embedding = _parameter(rngs, shape, config.position_init_std, ("position", "embed"))

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs)

        # One module whose parameters have a leading axis of layers.
        self.blocks = stacked(rngs)

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        document_start: Int[Array, "B L"],
        picture_places: Int[Array, "B L"],
        cache: Cache | None = None,
        cache_index: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B L D"], Cache | None]:
        """The normed hidden states, and the cache with these tokens in it if one was given.

        Args:
          tokens: ids.
          positions: each token's place in its document.
          document_start: index, in the row or in the cache, of the first token that each may attend to.
          picture_places: 1 + the place in its picture that follows each token; 0 outside of pictures.
          cache: keys and values of the tokens before these.
          cache_index: where in the cache the first of these tokens goes.
        """
        dtype = jnp.dtype(self.config.compute_dtype)
        B, L = tokens.shape
        x = self.token_embedding[...][tokens]
        if "learned" in self.config.positions:
            x = x + self.position_embedding[...][positions]
        if self.config.picture_places:
            x = x + self.place_embedding[...][picture_places]
        row_index = jnp.broadcast_to(cache_index + jnp.arange(L), (B, L))
        places = Places(positions, row_index, document_start)
        graph, parameters = nnx.split(self.blocks)

        def layer(x: Array, layer_inputs: tuple[Any, LayerCache | None]) -> tuple[Array, LayerCache | None]:
            layer_parameters, layer_cache = layer_inputs
            return nnx.merge(graph, layer_parameters)(x, places, layer_cache)

        if self.config.remat != "all" and cache is None:
            # In a loop XLA would undo the rematerialisation; a scan keeps it by itself.
            guard = not self.config.scan_layers
            layer = jax.checkpoint(layer, policy=_REMAT_POLICIES[self.config.remat], prevent_cse=guard)
        if self.config.scan_layers:
            x, cache = jax.lax.scan(layer, x.astype(dtype), (parameters, cache))
        else:
            x, cache = self._loop(layer, x.astype(dtype), (parameters, cache))
        return layer_norm(x, self.config.layer_norm_epsilon), cache

    def _loop(self, layer: Any, x: Array, stacked: tuple[Any, Cache | None]) -> tuple[Array, Cache | None]:
        caches = []
        for n in range(self.config.num_layers):
            x, layer_cache = layer(x, jax.tree.map(lambda leaf, n=n: leaf[n], stacked))
            caches.append(layer_cache)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Scores of the next token, float32."""
        table = self.token_embedding[...].astype(hidden.dtype)
        return jnp.einsum("...D,VD->...V", hidden, table, preferred_element_type=jnp.float32)

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Room for the keys and values of `length` tokens."""
        config = self.config
        shape = (config.num_layers, batch_size, length, config.num_heads, config.head_dim)
        return {name: jnp.zeros(shape, config.compute_dtype) for name in ("key", "value")}


def abstract_model(config: ModelConfig, vocabulary_size: int, sequence_length: int) -> tuple[nnx.GraphDef, nnx.State]:
    """A model's structure and the shapes of its parameters; nothing is allocated."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, vocabulary_size, sequence_length, nnx.Rngs(0))))


def parameter_count(config: ModelConfig, vocabulary_size: int, sequence_length: int) -> int:
    """How many parameters a model has."""
    _, parameters = abstract_model(config, vocabulary_size, sequence_length)
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))
