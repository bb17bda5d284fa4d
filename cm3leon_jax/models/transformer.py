"""The CM3Leon transformer (arXiv 2309.02591, section 2.3): OPT's decoder without biases, dropout or learned norms.

Other families are values of the config: OPT's biases, learned norms, norms on sums and projected embeddings; Llama's
RMS norm, gated feed-forward, grouped heads, rotary positions and untied LM head; Qwen2's biases of queries, keys and
values; Chameleon's normalized queries and keys, and its norms on the outputs of sublayers.

Shapes: B batch, L length, S cached slots, D model, N layers, H heads, K key/value heads, Dh head size, F feed-forward,
V vocabulary, E embedding. Parameters and activations carry the logical names of their axes; `sharding.py` maps those to
the axes of the mesh.
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

from cm3leon_jax.models import cpu
from cm3leon_jax.models.attention import attention, attention_mask
from cm3leon_jax.models.cache import LayerCache
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.embedding import embed
from cm3leon_jax.models.rotary import rotary_angles, rotate
from cm3leon_jax.models.sharding import with_logical_constraint

# One entry per layer.
Cache = tuple[LayerCache, ...]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}

# What the backward pass finds saved of a layer, besides its input.
_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_attention": jax.checkpoint_policies.save_only_these_names("query", "key", "value", "attention"),
    "save_dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class TokenLayout(NamedTuple):
    """Positions of tokens: in their document (-1: padding), their image, and the row or the cache."""

    position: Int[Array, "B L"]
    # 1 + the raster position of the code that follows each token; 0 outside of images.
    image_position: Int[Array, "B L"]
    row_index: Int[Array, "B L"]
    document_start: Int[Array, "B L"]
    # Slot of the cache for the first of them: one for all rows, or one per row.
    cache_index: Int[Array, ""] | Int[Array, "B"]


def _parameter(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, logical_axes: tuple[str, ...]) -> nnx.Param:
    """A truncated normal, cut at 3 standard deviations; zeros where `std` is 0."""
    value = std * jax.random.truncated_normal(rngs.params(), -3.0, 3.0, shape, jnp.float32) if std else jnp.zeros(shape)
    return nnx.Param(value, logical_axes=logical_axes)


def _linear_parameters(
    rngs: nnx.Rngs, shape: tuple[int, ...], std: float, logical_axes: tuple[str, ...], has_bias: bool, out_axes: int = 1
) -> tuple[nnx.Param, nnx.Param | None]:
    """A weight whose last `out_axes` axes are the output's, and a bias at zero."""
    weight = _parameter(rngs, shape, std, logical_axes)
    return weight, _parameter(rngs, shape[-out_axes:], 0.0, logical_axes[-out_axes:]) if has_bias else None


def _linear(equation: str, x: Array, weight: nnx.Param, bias: nnx.Param | None) -> Array:
    """x times a weight, plus a bias where there is one, in the type of x."""
    out = cpu.einsum(equation, x, weight[...].astype(x.dtype))
    return out if bias is None else out + bias[...].astype(x.dtype)


class Norm(nnx.Module):
    """Layer norm (arXiv 1607.06450) or RMS norm (arXiv 1910.07467) over the last axis, in float32.

    Where it is affine it has a learned scale, and layer norm a bias too: of `shape`, whose axes are `logical_axes`.
    """

    def __init__(
        self, kind: str, epsilon: float, shape: tuple[int, ...], logical_axes: tuple[str, ...], is_affine: bool
    ) -> None:
        self.epsilon, self.subtract_mean = epsilon, kind == "layer"
        self.scale = nnx.Param(jnp.ones(shape), logical_axes=logical_axes) if is_affine else None
        self.bias = nnx.Param(jnp.zeros(shape), logical_axes=logical_axes) if is_affine and self.subtract_mean else None

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalizes to variance 1, and, as layer norm, to mean 0."""
        x32 = x.astype(jnp.float32)
        if self.subtract_mean:
            x32 = x32 - x32.mean(axis=-1, keepdims=True)
        out = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + self.epsilon)
        if self.scale is not None:
            out = out * self.scale[...]
        if self.bias is not None:
            out = out + self.bias[...]
        return out.astype(x.dtype)


def _model_norm(config: ModelConfig) -> Norm:
    """A norm over the model's width."""
    return Norm(config.norm, config.layer_norm_epsilon, (config.model_dim,), ("embed",), config.norm_scale_and_bias)


def _head_norm(config: ModelConfig, num_heads: int) -> Norm | None:
    """The norm of every query or key head, with one scale for all heads or one per head (arXiv 2302.05442)."""
    if config.query_key_norm == "none":
        return None
    shape, axes = (num_heads, config.head_dim), ("heads", "head")
    first = 0 if config.query_key_norm_per_head else 1
    return Norm(config.query_key_norm, config.layer_norm_epsilon, shape[first:], axes[first:], is_affine=True)


class Attention(nnx.Module):
    """Multi-head self-attention; its output projection starts at zero."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, H, K, Dh = config.model_dim, config.num_heads, config.key_value_heads, config.head_dim
        std, axes = config.init_std, ("embed", "heads", "head")
        has_biases = config.biases or config.query_key_value_biases
        to_heads = partial(_linear_parameters, rngs, std=std, logical_axes=axes, has_bias=has_biases, out_axes=2)
        self.query, self.query_bias = to_heads((D, H, Dh))
        self.key, self.key_bias = to_heads((D, K, Dh))
        self.value, self.value_bias = to_heads((D, K, Dh))
        from_heads = ("heads", "head", "embed")
        self.output, self.output_bias = _linear_parameters(rngs, (H, Dh, D), 0.0, from_heads, config.biases)
        self.query_norm, self.key_norm = (_head_norm(config, heads) for heads in (H, K))
        self.config, self.is_rotary = config, "rotary" in config.positions

    def __call__(
        self, x: Float[Array, "B L D"], layout: TokenLayout, cache: LayerCache | None
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        """Attends within x, or, given its layer's cache, writes x into it and attends to all of it."""
        query = _linear("BLD,DHd->BLHd", x, self.query, self.query_bias)
        key = _linear("BLD,DKd->BLKd", x, self.key, self.key_bias)
        value = _linear("BLD,DKd->BLKd", x, self.value, self.value_bias)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.is_rotary:
            angles = rotary_angles(layout.position, layout.image_position, self.config)
            query, key = rotate(query, angles), rotate(key, angles)
        if cache is None:
            query, key, value = (with_logical_constraint(x, "batch", None, "heads", None) for x in (query, key, value))
            query, key, value = map(checkpoint_name, (query, key, value), ("query", "key", "value"))
            out = attention(query, key, value, layout.document_start, self.config.attention)
            out = checkpoint_name(out, "attention")
        else:
            cache = cache.write(key, value, layout.cache_index, layout.position >= 0)
            out = cache.attend(query, attention_mask(layout.row_index, layout.document_start, cache.key.shape[2]))
        return _linear("BLHd,HdD->BLD", out, self.output, self.output_bias), cache


class FeedForward(nnx.Module):
    """Two matmuls with an activation between them, gated (GLU, arXiv 2002.05202) or not; the last starts at zero."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, F = config.model_dim, config.hidden_dim
        self.activation = _ACTIVATIONS[config.activation]
        linear = partial(_linear_parameters, rngs, has_bias=config.biases)
        self.up, self.up_bias = linear((D, F), config.init_std, ("embed", "ffn"))
        gate: tuple[nnx.Param | None, nnx.Param | None] = (None, None)
        if config.gated:
            gate = linear((D, F), config.init_std, ("embed", "ffn"))
        self.gate, self.gate_bias = gate
        self.down, self.down_bias = linear((F, D), 0.0, ("ffn", "embed"))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Maps each position alone."""
        hidden = _linear("BLD,DF->BLF", x, self.up, self.up_bias)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(_linear("BLD,DF->BLF", x, self.gate, self.gate_bias)) * hidden
        hidden = with_logical_constraint(hidden, "batch", None, "ffn")
        return _linear("BLF,FD->BLD", hidden, self.down, self.down_bias)


class Block(nnx.Module):
    """One layer; between its sublayers the sequence is sharded as well (arXiv 2205.05198, section 4.2.2)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.attention = Attention(config, rngs)
        self.feed_forward = FeedForward(config, rngs)
        self.attention_norm, self.feed_forward_norm = _model_norm(config), _model_norm(config)
        self.norm_position = config.norm_position

    def __call__(
        self, x: Float[Array, "B L D"], layout: TokenLayout, cache: LayerCache | None
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        """x + attention, then x + feed-forward; the norms are on each sublayer's input, its output, or the sum."""
        out, cache = self.attention(self._norm_at("input", self.attention_norm, x), layout, cache)
        x = self._norm_at("sum", self.attention_norm, x + self._norm_at("output", self.attention_norm, out))
        x = with_logical_constraint(x, "batch", "sequence", None)
        out = self.feed_forward(self._norm_at("input", self.feed_forward_norm, x))
        x = self._norm_at("sum", self.feed_forward_norm, x + self._norm_at("output", self.feed_forward_norm, out))
        return with_logical_constraint(x, "batch", "sequence", None), cache

    def _norm_at(self, position: str, norm: Norm, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return norm(x) if position == self.norm_position else x


@jax.custom_vjp
def _unstack_layers(stack: Any) -> list[Any]:
    """Splits the stacked parameters by layer; their gradients are stacked once."""
    return [jax.tree.map(lambda leaf, n=n: leaf[n], stack) for n in range(len(jax.tree.leaves(stack)[0]))]


_unstack_layers.defvjp(
    lambda stack: (_unstack_layers(stack), None),
    lambda _, gradients: (jax.tree.map(lambda *layers: jnp.stack(layers), *gradients),),
)


class Transformer(nnx.Module):
    """Tokens to hidden states to logits; the LM head is the embedding table, unless the config unties them."""

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        sequence_length: int,
        rngs: nnx.Rngs,
        image_length: int | None = None,
    ) -> None:
        """Initializes the parameters.

        Args:
          sequence_length: rows of the table of learned positions.
          image_length: codes of an image; needed with `config.image_position_embedding`.
        """
        D, E, V = config.model_dim, config.token_dim, vocabulary_size
        self.config = config
        self.token_embedding = _parameter(rngs, (V, E), config.init_std, ("vocab", "embed"))
        if not config.tied_embeddings:
            self.output_embedding = _parameter(rngs, (V, E), config.init_std, ("vocab", "embed"))
        if "learned" in config.positions:
            self.position_embedding = _parameter(
                rngs, (sequence_length, D), config.position_init_std, ("position", "embed")
            )
        if config.image_position_embedding:
            if image_length is None:
                raise ValueError("config.image_position_embedding needs image_length")
            # Row 0 is for tokens outside of images; the last for the token that follows an image's last code.
            shape = (image_length + 2, D)
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
        # With norms on the sums, the last layer's output is normalized already.
        self.final_norm = None if config.norm_position == "sum" else _model_norm(config)

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        document_start: Int[Array, "B L"],
        image_positions: Int[Array, "B L"],
    ) -> Float[Array, "B L D"]:
        """The normalized hidden states.

        Args:
          positions: of each token in its document.
          document_start: index in the row of the first token that each may attend to.
          image_positions: 1 + the raster position of the code that follows each token; 0 outside of images.
        """
        B, L = tokens.shape
        row_index = jnp.broadcast_to(jnp.arange(L), (B, L))
        layout = TokenLayout(positions, image_positions, row_index, document_start, jnp.zeros((), jnp.int32))
        x = with_logical_constraint(self._embed(tokens, positions, image_positions), "batch", "sequence", None)
        graph, parameters = nnx.split(self.blocks)

        def layer(x: Array, layer_parameters: Any) -> tuple[Array, Any]:
            return nnx.merge(graph, layer_parameters)(x, layout, None)

        if self.config.remat != "none":
            # Without a scan XLA would merge the recomputation with the forward pass (CSE), and undo it.
            prevent_cse = not self.config.scan_layers
            layer = jax.checkpoint(layer, policy=_REMAT_POLICIES[self.config.remat], prevent_cse=prevent_cse)
        if self.config.scan_layers:
            x, _ = jax.lax.scan(layer, x, parameters)
        else:
            for layer_parameters in _unstack_layers(parameters):
                x, _ = layer(x, layer_parameters)
        return self._final_norm(x)

    def extend(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        document_start: Int[Array, "B L"],
        image_positions: Int[Array, "B L"],
        cache: Cache,
        index: Int[Array, ""] | Int[Array, "B"],
    ) -> tuple[Float[Array, "B L D"], Cache]:
        """The normalized hidden states of tokens that follow those in the cache, and the cache with them in it.

        Args:
          positions: of each token in its document; -1 for a token that is not to be written into the cache.
          document_start: slot of the cache of the first token that each may attend to.
          index: the slot for the first of these tokens, the same for all rows or one per row.
        """
        row_index = jnp.broadcast_to(index[..., None] + jnp.arange(tokens.shape[1]), tokens.shape)
        layout = TokenLayout(positions, image_positions, row_index, document_start, index)
        x = self._embed(tokens, positions, image_positions)
        caches: list[Any] = []
        for layer, layer_cache in zip(self.layers(), cache, strict=True):
            x, extended = layer(x, layout, layer_cache)
            caches.append(extended)
        return self._final_norm(x), tuple(caches)

    def _embed(
        self, tokens: Int[Array, "B L"], positions: Int[Array, "B L"], image_positions: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        x = embed(self.token_embedding[...], tokens, "vocab")
        if self.config.token_dim != self.config.model_dim:
            x = jnp.einsum("BLE,ED->BLD", x, self.project_in[...])
        if "learned" in self.config.positions:
            x = x + embed(self.position_embedding[...], jnp.maximum(positions, 0), "position")
        if self.config.image_position_embedding:
            x = x + embed(self.image_position_embedding[...], image_positions, "position")
        return x.astype(self.config.compute_dtype)

    def _final_norm(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return x if self.final_norm is None else self.final_norm(x)

    def layers(self) -> Iterator[Block]:
        """The layers as separate modules."""
        if isinstance(self.blocks, nnx.List):
            yield from self.blocks
            return
        graph, parameters = nnx.split(self.blocks)
        for layer_parameters in _unstack_layers(parameters):
            yield nnx.merge(graph, layer_parameters)

    def unstacked(self) -> Transformer:
        """The same model for decoding: separate arrays per layer, in the type of the activations.

        A loop over tokens that slices or casts its weights in each step would move them twice.
        """
        graph, parameters = nnx.split(self)
        model = nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(self.config.compute_dtype), parameters))
        model.blocks = nnx.List(list(model.layers()))
        return model

    def logits(self, hidden: Float[Array, "... D"], table: Float[Array, "W E"] | None = None) -> Float[Array, "... W"]:
        """Logits of the next token, float32: of every id, or of those whose rows of the LM head are given."""
        hidden = self.output_features(hidden)
        table = self.output_table if table is None else table
        return jnp.einsum("...E,VE->...V", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)

    @property
    def output_table(self) -> Float[Array, "V E"]:
        """The weight of the LM head."""
        return (self.token_embedding if self.config.tied_embeddings else self.output_embedding)[...]

    def output_features(self, hidden: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """The input of the LM head."""
        if self.config.token_dim == self.config.model_dim:
            return hidden
        return jnp.einsum("...D,DE->...E", hidden, self.project_out[...].astype(hidden.dtype))

    def empty_cache(self, batch_size: int, length: int, dtype: str = "") -> Cache:
        """Allocates slots for `length` tokens per row, in the type of the activations or another."""
        config = self.config
        shape = (batch_size, config.key_value_heads, length, config.head_dim)
        return tuple(LayerCache.empty(*shape, dtype or config.compute_dtype) for _ in range(config.num_layers))


def abstract_model(
    config: ModelConfig, vocabulary_size: int, sequence_length: int, image_length: int | None = None
) -> tuple[nnx.GraphDef, nnx.State]:
    """A model's structure and the shapes of its parameters; nothing is allocated."""

    def build() -> Transformer:
        return Transformer(config, vocabulary_size, sequence_length, nnx.Rngs(0), image_length)

    return nnx.split(nnx.eval_shape(build))


def parameter_count(
    config: ModelConfig, vocabulary_size: int, sequence_length: int, image_length: int | None = None
) -> int:
    _, parameters = abstract_model(config, vocabulary_size, sequence_length, image_length)
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))
