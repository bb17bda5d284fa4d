"""The CM3Leon transformer (arXiv 2309.02591, section 2.3): OPT's decoder without biases, dropout or learned norms.

What other families have (OPT's biases, learned norms, norms on sums and projected embeddings; Llama's RMS norm, gated
feed-forward, grouped heads, rotary positions and untied output layer; Chameleon's normalized queries and keys, and
its norms on what a sublayer gives) are values of the config.

Shapes: B batch, L length, S cached slots, D model, N layers, H heads, K key/value heads, Dh head size, F feed-forward,
V vocabulary, E embedding. Parameters and activations carry the logical names of their axes; which mesh axis each falls
on is decided in `sharding.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from cm3leon_jax.models.attention import attention, attention_mask, rotary_angles, rotate
from cm3leon_jax.models.cache import LayerCache
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.embedding import embed
from cm3leon_jax.models.projection import project
from cm3leon_jax.models.sharding import with_logical_constraint

# One entry a layer.
Cache = tuple[LayerCache, ...]


def _parameter(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, logical_axes: tuple[str, ...]) -> nnx.Param:
    """A truncated normal, cut at 3 standard deviations; zeros where `std` is 0."""
    value = std * jax.random.truncated_normal(rngs.params(), -3.0, 3.0, shape, jnp.float32) if std else jnp.zeros(shape)
    return nnx.Param(value, logical_axes=logical_axes)


def _plus(x: Float[Array, "... d"], bias: nnx.Param | None) -> Float[Array, "... d"]:
    return x if bias is None else x + bias[...].astype(x.dtype)


class Norm(nnx.Module):
    """Layer norm ("layer") or RMS norm ("rms") over the last axis, in float32.

    Where it is affine it has a learned scale, and layer norm a bias too: of `shape`, whose axes are `logical_axes`.
    """

    def __init__(
        self, kind: str, epsilon: float, shape: tuple[int, ...], logical_axes: tuple[str, ...], is_affine: bool
    ) -> None:
        self.epsilon, self.subtract_mean = epsilon, kind == "layer"
        self.scale = nnx.Param(jnp.ones(shape), logical_axes=logical_axes) if is_affine else None
        self.bias = nnx.Param(jnp.zeros(shape), logical_axes=logical_axes) if is_affine and self.subtract_mean else None

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Variance 1 over the last axis; mean 0 too, but for RMS norm."""
        x32 = x.astype(jnp.float32)
        if self.subtract_mean:
            x32 = x32 - x32.mean(axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + self.epsilon)
        if self.scale is not None:
            normed = normed * self.scale[...]
        return _plus(normed, self.bias).astype(x.dtype)


class TokenLayout(NamedTuple):
    """Where tokens stand: in their document (-1: padding), in the row or the cache, and where their document starts."""

    position: Int[Array, "B L"]
    # 1 + the place in its image that follows each; 0 outside of images.
    image_position: Int[Array, "B L"]
    row_index: Int[Array, "B L"]
    document_start: Int[Array, "B L"]
    # Slot of the cache for the first of them: one for all rows, or one a row.
    cache_index: Int[Array, ""] | Int[Array, "B"]


def _model_norm(config: ModelConfig) -> Norm:
    """A norm over the model's width."""
    return Norm(config.norm, config.layer_norm_epsilon, (config.model_dim,), ("embed",), config.norm_scale_and_bias)


def _head_norm(config: ModelConfig, num_heads: int) -> Norm | None:
    """The norm of every query or key head, with one scale for all heads or one for each, as the config says."""
    if config.query_key_norm == "none":
        return None
    shape, axes = (num_heads, config.head_dim), ("heads", "head")
    first = 0 if config.query_key_norm_per_head else 1
    return Norm(config.query_key_norm, config.layer_norm_epsilon, shape[first:], axes[first:], is_affine=True)


class Attention(nnx.Module):
    """Multi-head self-attention; its output projection starts at zero."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, H, K, Dh = config.model_dim, config.num_heads, config.key_value_heads, config.head_dim
        self.query = _parameter(rngs, (D, H, Dh), config.init_std, ("embed", "heads", "head"))
        self.key = _parameter(rngs, (D, K, Dh), config.init_std, ("embed", "heads", "head"))
        self.value = _parameter(rngs, (D, K, Dh), config.init_std, ("embed", "heads", "head"))
        self.output = _parameter(rngs, (H, Dh, D), 0.0, ("heads", "head", "embed"))
        bias = partial(_parameter, rngs, std=0.0) if config.biases else lambda **_: None
        self.query_bias = bias(shape=(H, Dh), logical_axes=("heads", "head"))
        self.key_bias = bias(shape=(K, Dh), logical_axes=("heads", "head"))
        self.value_bias = bias(shape=(K, Dh), logical_axes=("heads", "head"))
        self.output_bias = bias(shape=(D,), logical_axes=("embed",))
        self.query_norm, self.key_norm = (_head_norm(config, heads) for heads in (H, K))
        self.rotary, self.rotary_image_positions = "rotary" in config.positions, config.rotary_image_positions
        self.rotary_base = config.rotary_base
        self.implementation = config.attention

    def __call__(
        self, x: Float[Array, "B L D"], layout: TokenLayout, cache: LayerCache | None
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        """Attends within x, or, given its layer's cache, writes x into it and attends to all of it."""
        query = _plus(project("BLD,DHd->BLHd", x, self.query[...].astype(x.dtype)), self.query_bias)
        key = _plus(project("BLD,DKd->BLKd", x, self.key[...].astype(x.dtype)), self.key_bias)
        value = _plus(project("BLD,DKd->BLKd", x, self.value[...].astype(x.dtype)), self.value_bias)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary:
            images = layout.image_position if self.rotary_image_positions else None
            angles = rotary_angles(layout.position, images, query.shape[-1], self.rotary_base)
            query, key = rotate(query, angles), rotate(key, angles)
        if cache is None:
            query, key, value = (
                with_logical_constraint(part, "batch", None, "heads", None) for part in (query, key, value)
            )
            query, key, value = map(checkpoint_name, (query, key, value), ("query", "key", "value"))
            mixed = attention(query, key, value, layout.document_start, self.implementation)
            mixed = checkpoint_name(mixed, "attention")
        else:
            cache = cache.write(key, value, layout.cache_index, layout.position >= 0)
            mixed = cache.attend(query, attention_mask(layout.row_index, layout.document_start, cache.key.shape[2]))
        return _plus(project("BLHd,HdD->BLD", mixed, self.output[...].astype(x.dtype)), self.output_bias), cache


class FeedForward(nnx.Module):
    """Two layers with an activation between, or a gate beside it; the last starts at zero."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, F = config.model_dim, config.hidden_dim
        activations: dict[str, Callable[[Array], Array]] = {
            "relu": jax.nn.relu,
            "gelu": partial(jax.nn.gelu, approximate=False),
            "gelu_tanh": partial(jax.nn.gelu, approximate=True),
            "silu": jax.nn.silu,
        }
        self.activation = activations[config.activation]
        self.up = _parameter(rngs, (D, F), config.init_std, ("embed", "ffn"))
        self.gate = _parameter(rngs, (D, F), config.init_std, ("embed", "ffn")) if config.gated else None
        self.down = _parameter(rngs, (F, D), 0.0, ("ffn", "embed"))
        self.up_bias = _parameter(rngs, (F,), 0.0, ("ffn",)) if config.biases else None
        self.gate_bias = _parameter(rngs, (F,), 0.0, ("ffn",)) if config.biases and config.gated else None
        self.down_bias = _parameter(rngs, (D,), 0.0, ("embed",)) if config.biases else None

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Applies to each position alone."""
        hidden = _plus(project("BLD,DF->BLF", x, self.up[...].astype(x.dtype)), self.up_bias)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            gate = _plus(project("BLD,DF->BLF", x, self.gate[...].astype(x.dtype)), self.gate_bias)
            hidden = self.activation(gate) * hidden
        hidden = with_logical_constraint(hidden, "batch", None, "ffn")
        return _plus(project("BLF,FD->BLD", hidden, self.down[...].astype(x.dtype)), self.down_bias)


class Block(nnx.Module):
    """One layer; between layers the sequence is shared out as well."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.attention = Attention(config, rngs)
        self.feed_forward = FeedForward(config, rngs)
        self.attention_norm, self.feed_forward_norm = _model_norm(config), _model_norm(config)
        self.norm_position = config.norm_position

    def __call__(
        self, x: Float[Array, "B L D"], layout: TokenLayout, cache: LayerCache | None
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        """x + attention, then x + feed-forward; the norms are on each sublayer's input, its output, or the sum."""
        attended, cache = self.attention(self._at("input", self.attention_norm, x), layout, cache)
        x = self._at("sum", self.attention_norm, x + self._at("output", self.attention_norm, attended))
        x = with_logical_constraint(x, "batch", "sequence", None)
        fed = self.feed_forward(self._at("input", self.feed_forward_norm, x))
        x = self._at("sum", self.feed_forward_norm, x + self._at("output", self.feed_forward_norm, fed))
        return with_logical_constraint(x, "batch", "sequence", None), cache

    def _at(self, position: str, norm: Norm, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return norm(x) if position == self.norm_position else x


@jax.custom_vjp
def _unstack_layers(stack: Any) -> list[Any]:
    """The parameters of each layer, out of those of all; their gradients are put side by side once."""
    return [jax.tree.map(lambda leaf, n=n: leaf[n], stack) for n in range(len(jax.tree.leaves(stack)[0]))]


_unstack_layers.defvjp(
    lambda stack: (_unstack_layers(stack), None),
    lambda _, gradients: (jax.tree.map(lambda *layers: jnp.stack(layers), *gradients),),
)


# What the backward pass finds saved of a layer, beside its input.
_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_attention": jax.checkpoint_policies.save_only_these_names("query", "key", "value", "attention"),
    "save_dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Transformer(nnx.Module):
    """Tokens to hidden states to logits; the embedding table is the output layer too, unless the config unties them."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, sequence_length: int, rngs: nnx.Rngs) -> None:
        D, E, V = config.model_dim, config.token_dim, vocabulary_size
        self.config = config
        self.token_embedding = _parameter(rngs, (V, E), config.init_std, ("vocab", "embed"))
        if not config.tied_embeddings:
            self.output_embedding = _parameter(rngs, (V, E), config.init_std, ("vocab", "embed"))
        if "learned" in config.positions:
            self.position_embedding = _parameter(
                rngs, (sequence_length, D), config.position_init_std, ("position", "embed")
            )
        if config.image_positions:
            # "Nowhere", then the places 0 to K: one follows the last code.
            shape = (config.image_positions + 2, D)
            self.image_position_embedding = _parameter(rngs, shape, config.position_init_std, ("position", "embed"))
        if E != D:
            self.project_in = _parameter(rngs, (E, D), config.init_std, ("position", "embed"))
            self.project_out = _parameter(rngs, (D, E), config.init_std, ("embed", "position"))

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs)

        # One module whose parameters have a leading axis of layers; a list of modules after `unstacked`.
        self.blocks: Block | nnx.List = stacked(rngs)
        # Where norms are on the sums, the last layer's is the last of all.
        self.final_norm = None if config.norm_position == "sum" else _model_norm(config)

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        document_start: Int[Array, "B L"],
        image_positions: Int[Array, "B L"],
    ) -> Float[Array, "B L D"]:
        """The normed hidden states.

        Args:
          tokens: ids.
          positions: each token's place in its document.
          document_start: index in the row of the first token that each may attend to.
          image_positions: 1 + the place in its image that follows each token; 0 outside of images.
        """
        B, L = tokens.shape
        row_index = jnp.broadcast_to(jnp.arange(L), (B, L))
        layout = TokenLayout(positions, image_positions, row_index, document_start, jnp.zeros((), jnp.int32))
        x = with_logical_constraint(self._embedded(tokens, positions, image_positions), "batch", "sequence", None)
        graph, parameters = nnx.split(self.blocks)

        def layer(x: Array, layer_parameters: Any) -> tuple[Array, Any]:
            return nnx.merge(graph, layer_parameters)(x, layout, None)

        if self.config.remat != "none":
            # In a loop XLA would undo the rematerialization; a scan keeps it by itself.
            guard = not self.config.scan_layers
            layer = jax.checkpoint(layer, policy=_REMAT_POLICIES[self.config.remat], prevent_cse=guard)
        if self.config.scan_layers:
            x, _ = jax.lax.scan(layer, x, parameters)
        else:
            for layer_parameters in _unstack_layers(parameters):
                x, _ = layer(x, layer_parameters)
        return self._normed(x)

    def extend(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        document_start: Int[Array, "B L"],
        image_positions: Int[Array, "B L"],
        cache: Cache,
        index: Int[Array, ""] | Int[Array, "B"],
    ) -> tuple[Float[Array, "B L D"], Cache]:
        """The normed hidden states of tokens that follow those in the cache, and the cache with them in it.

        Args:
          tokens: ids.
          positions: each token's place in its document; -1 for a token that is to leave no trace in the cache.
          document_start: slot of the cache of the first token that each may attend to.
          image_positions: as above.
          cache: keys and values of the tokens before these.
          index: the slot for the first of these tokens, the same for all rows or one a row.
        """
        row_index = jnp.broadcast_to(index[..., None] + jnp.arange(tokens.shape[1]), tokens.shape)
        layout = TokenLayout(positions, image_positions, row_index, document_start, index)
        x = self._embedded(tokens, positions, image_positions)
        written: list[Any] = []
        for layer, layer_cache in zip(self.layers(), cache, strict=True):
            x, layer_written = layer(x, layout, layer_cache)
            written.append(layer_written)
        return self._normed(x), tuple(written)

    def _embedded(
        self, tokens: Int[Array, "B L"], positions: Int[Array, "B L"], image_positions: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        x = embed(self.token_embedding[...], tokens, "vocab")
        if self.config.token_dim != self.config.model_dim:
            x = jnp.einsum("BLE,ED->BLD", x, self.project_in[...])
        if "learned" in self.config.positions:
            x = x + embed(self.position_embedding[...], jnp.maximum(positions, 0), "position")
        if self.config.image_positions:
            x = x + embed(self.image_position_embedding[...], image_positions, "position")
        return x.astype(self.config.compute_dtype)

    def _normed(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return x if self.final_norm is None else self.final_norm(x)

    def layers(self) -> Iterator[Block]:
        """The layers as modules of their own."""
        if isinstance(self.blocks, nnx.List):
            yield from self.blocks
            return
        graph, parameters = nnx.split(self.blocks)
        for layer_parameters in _unstack_layers(parameters):
            yield nnx.merge(graph, layer_parameters)

    def unstacked(self) -> Transformer:
        """The same model for decoding: every layer its own arrays, in the type of the activations.

        A loop over tokens that slices or casts its weights in each step would move them twice.
        """
        graph, parameters = nnx.split(self)
        model = nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(self.config.compute_dtype), parameters))
        model.blocks = nnx.List(list(model.layers()))
        return model

    def logits(self, hidden: Float[Array, "... D"], table: Float[Array, "W E"] | None = None) -> Float[Array, "... W"]:
        """Scores of the next token, float32: of every id, or of those whose rows of the output table are given."""
        hidden = self.output_features(hidden)
        table = self.output_table if table is None else table
        return jnp.einsum("...E,VE->...V", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)

    @property
    def output_table(self) -> Float[Array, "V E"]:
        """The row of each id that hidden states are multiplied with to score it as the next token."""
        return (self.token_embedding if self.config.tied_embeddings else self.output_embedding)[...]

    def output_features(self, hidden: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """What is multiplied with the output table to score the next token."""
        if self.config.token_dim == self.config.model_dim:
            return hidden
        return jnp.einsum("...D,DE->...E", hidden, self.project_out[...].astype(hidden.dtype))

    def empty_cache(self, batch_size: int, length: int, dtype: str = "") -> Cache:
        """Room for the keys and values of `length` tokens a row, in the type of the activations or another."""
        config = self.config
        shape = (batch_size, config.key_value_heads, length, config.head_dim)
        return tuple(LayerCache.empty(*shape, dtype or config.compute_dtype) for _ in range(config.num_layers))


def abstract_model(config: ModelConfig, vocabulary_size: int, sequence_length: int) -> tuple[nnx.GraphDef, nnx.State]:
    """A model's structure and the shapes of its parameters; nothing is allocated."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, vocabulary_size, sequence_length, nnx.Rngs(0))))


def parameter_count(config: ModelConfig, vocabulary_size: int, sequence_length: int) -> int:
    """How many parameters a model has."""
    _, parameters = abstract_model(config, vocabulary_size, sequence_length)
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))
