"""CLIP (Radford et al., arXiv 2103.00020, section 2.4): a transformer over text and one over patches into one space.

Shapes: B batch, T text tokens, P patches, L length, D tower, H heads, Dh head size, F feed-forward, E embedding, R
pixels along a side. Every parameter carries the logical names of its axes; which mesh axis each falls on is decided in
`models/sharding.py`. All is float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cm3leon_jax.encoders.clip.config import ClipConfig
from cm3leon_jax.models.attention import masked_attention
from cm3leon_jax.models.sharding import parameter_name
from cm3leon_jax.named_parameters import named_generator

CHANNELS = 3


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The sigmoid approximation of GELU (Hendrycks and Gimpel, arXiv 1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "quick_gelu": quick_gelu,
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
}


@dataclass(frozen=True)
class Tower:
    """The shape of one of the two transformers."""

    num_layers: int
    dim: int
    num_heads: int
    ffn_dim: int
    activation: str = "quick_gelu"
    layer_norm_epsilon: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class ClipArchitecture:
    """The shapes of both towers and of what they read."""

    embedding_dim: int
    vocabulary_size: int
    max_text_tokens: int
    resolution: int
    patch_size: int
    text: Tower
    image: Tower

    @classmethod
    def of(cls, config: ClipConfig, vocabulary_size: int) -> ClipArchitecture:
        """The one that a config describes."""
        c = config
        text = Tower(c.text_layers, c.text_dim, c.text_heads, 4 * c.text_dim, c.activation)
        image = Tower(c.image_layers, c.image_dim, c.image_heads, 4 * c.image_dim, c.activation)
        sizes = c.embedding_dim, vocabulary_size, c.max_text_tokens, c.resolution, c.patch_size
        return cls(*sizes, text, image)

    @property
    def num_patches(self) -> int:
        return (self.resolution // self.patch_size) ** 2


def parameter(shape: tuple[int, ...], std: float, logical_axes: tuple[str, ...], mean: float = 0.0) -> nnx.Param:
    """A parameter with its mean everywhere; `initial_clip_parameters` adds a normal of this deviation."""
    return nnx.Param(jnp.full(shape, mean, jnp.float32), logical_axes=logical_axes, mean=mean, std=std)


class ClipLayerNorm(nnx.Module):
    """Layer norm with a learned scale and bias."""

    def __init__(self, tower: Tower) -> None:
        self.epsilon = tower.layer_norm_epsilon
        self.scale = parameter((tower.dim,), 0.0, ("embed",), mean=1.0)
        self.bias = parameter((tower.dim,), 0.0, ("embed",))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Mean 0 and variance 1 over the last axis, then scaled and shifted."""
        centered = x - x.mean(axis=-1, keepdims=True)
        normed = centered * jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + self.epsilon)
        return normed * self.scale[...] + self.bias[...]


class ClipAttention(nnx.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, tower: Tower) -> None:
        D, H, Dh = tower.dim, tower.num_heads, tower.head_dim
        std, output_std = D**-0.5, D**-0.5 * (2 * tower.num_layers) ** -0.5
        self.query = parameter((D, H, Dh), std, ("embed", "heads", "head"))
        self.key = parameter((D, H, Dh), std, ("embed", "heads", "head"))
        self.value = parameter((D, H, Dh), std, ("embed", "heads", "head"))
        self.output = parameter((H, Dh, D), output_std, ("heads", "head", "embed"))
        self.query_bias = parameter((H, Dh), 0.0, ("heads", "head"))
        self.key_bias = parameter((H, Dh), 0.0, ("heads", "head"))
        self.value_bias = parameter((H, Dh), 0.0, ("heads", "head"))
        self.output_bias = parameter((D,), 0.0, ("embed",))

    def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "L L"]) -> Float[Array, "B L D"]:
        """Each position attends to those that the mask lets through."""
        query = jnp.einsum("BLD,DHd->BLHd", x, self.query[...]) + self.query_bias[...]
        key = jnp.einsum("BLD,DHd->BLHd", x, self.key[...]) + self.key_bias[...]
        value = jnp.einsum("BLD,DHd->BLHd", x, self.value[...]) + self.value_bias[...]
        attended = masked_attention(query, key, value, jnp.broadcast_to(mask, (len(x), *mask.shape)))
        return jnp.einsum("BLHd,HdD->BLD", attended, self.output[...]) + self.output_bias[...]


class ClipFeedForward(nnx.Module):
    """Two layers with an activation between."""

    def __init__(self, tower: Tower) -> None:
        D, F = tower.dim, tower.ffn_dim
        self.activation = ACTIVATIONS[tower.activation]
        self.up = parameter((D, F), (2 * D) ** -0.5, ("embed", "ffn"))
        self.down = parameter((F, D), D**-0.5 * (2 * tower.num_layers) ** -0.5, ("ffn", "embed"))
        self.up_bias = parameter((F,), 0.0, ("ffn",))
        self.down_bias = parameter((D,), 0.0, ("embed",))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Applies to each position alone."""
        hidden = self.activation(jnp.einsum("BLD,DF->BLF", x, self.up[...]) + self.up_bias[...])
        return jnp.einsum("BLF,FD->BLD", hidden, self.down[...]) + self.down_bias[...]


class ClipBlock(nnx.Module):
    """One layer; the norms are on what each part reads."""

    def __init__(self, tower: Tower) -> None:
        self.attention_norm = ClipLayerNorm(tower)
        self.attention = ClipAttention(tower)
        self.feed_forward_norm = ClipLayerNorm(tower)
        self.feed_forward = ClipFeedForward(tower)

    def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "L L"]) -> Float[Array, "B L D"]:
        """x + attention, then x + feed-forward."""
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


def stacked(tower: Tower) -> ClipBlock:
    """All layers as one module whose parameters have a leading axis of layers."""
    graph, parameters = nnx.split(ClipBlock(tower))
    return nnx.merge(
        graph, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (tower.num_layers, *leaf.shape)), parameters)
    )


def through(blocks: ClipBlock, x: Float[Array, "B L D"], mask: Bool[Array, "L L"]) -> Float[Array, "B L D"]:
    """Applies all layers, one after the other."""
    graph, parameters = nnx.split(blocks)

    # A large batch holds many negatives; what a layer computes inside is computed again in the backward pass.
    @partial(jax.checkpoint, prevent_cse=False)
    def layer(x: Array, layer_parameters: Any) -> tuple[Array, None]:
        return nnx.merge(graph, layer_parameters)(x, mask), None

    return jax.lax.scan(layer, x, parameters)[0]


class TextTower(nnx.Module):
    """Causal transformer; a text is the state at its end token."""

    def __init__(self, architecture: ClipArchitecture) -> None:
        tower, size = architecture.text, architecture.vocabulary_size
        self.token_embedding = parameter((size, tower.dim), 0.02, ("vocab", "embed"))
        shape = (architecture.max_text_tokens, tower.dim)
        self.position_embedding = parameter(shape, 0.01, ("position", "embed"))
        self.blocks = stacked(tower)
        self.final_norm = ClipLayerNorm(tower)
        shape = (tower.dim, architecture.embedding_dim)
        self.projection = parameter(shape, tower.dim**-0.5, ("embed", "position"))

    def __call__(self, tokens: Int[Array, "B T"], ends: Int[Array, "B"]) -> Float[Array, "B E"]:
        """Embeddings of texts, not of unit norm; what follows the end token, at the index `ends`, has no influence."""
        length = tokens.shape[1]
        x = self.token_embedding[...][tokens] + self.position_embedding[:length]
        x = through(self.blocks, x, jnp.tril(jnp.ones((length, length), bool)))
        return self.final_norm(x[jnp.arange(len(x)), ends]) @ self.projection[...]


class ImageTower(nnx.Module):
    """Vision transformer; an image is the state at a class token before its patches."""

    def __init__(self, architecture: ClipArchitecture) -> None:
        tower, side = architecture.image, architecture.patch_size
        std, pixels = tower.dim**-0.5, (side, side, CHANNELS)
        self.patch_size = side
        patch_std = math.prod(pixels) ** -0.5
        self.patch_embedding = parameter((*pixels, tower.dim), patch_std, ("position",) * 3 + ("embed",))
        self.class_embedding = parameter((tower.dim,), std, ("embed",))
        shape = (architecture.num_patches + 1, tower.dim)
        self.position_embedding = parameter(shape, std, ("position", "embed"))
        self.first_norm = ClipLayerNorm(tower)
        self.blocks = stacked(tower)
        self.final_norm = ClipLayerNorm(tower)
        self.projection = parameter((tower.dim, architecture.embedding_dim), std, ("embed", "position"))

    def __call__(self, pixels: Float[Array, "B R R 3"], kept: Bool[Array, "B P"] | None = None) -> Float[Array, "B E"]:
        """Embeddings of images (normalized to mean 0), not of unit norm; pixels of patches that are not kept are 0."""
        side = self.patch_size
        B, grid = len(pixels), pixels.shape[1] // side
        patches = pixels.reshape(B, grid, side, grid, side, CHANNELS).swapaxes(2, 3)
        patches = patches.reshape(B, grid * grid, side, side, CHANNELS)
        if kept is not None:
            patches = jnp.where(kept[:, :, None, None, None], patches, 0)
        x = jnp.einsum("BPpqC,pqCD->BPD", patches, self.patch_embedding[...])
        first = jnp.broadcast_to(self.class_embedding[...], (B, 1, x.shape[-1]))
        x = self.first_norm(jnp.concatenate([first, x], axis=1) + self.position_embedding[...])
        x = through(self.blocks, x, jnp.ones((x.shape[1], x.shape[1]), bool))
        return self.final_norm(x[:, 0]) @ self.projection[...]


class Clip(nnx.Module):
    """Both towers, and the temperature that their products are divided by, as the log of its inverse."""

    def __init__(self, architecture: ClipArchitecture) -> None:
        self.text = TextTower(architecture)
        self.image = ImageTower(architecture)
        self.logit_scale = parameter((), 0.0, ())


def abstract_clip(architecture: ClipArchitecture) -> Clip:
    """The module with shapes in place of arrays; nothing is allocated."""
    return nnx.eval_shape(lambda: Clip(architecture))


def initial_clip_parameters(architecture: ClipArchitecture, temperature: float, seed: int) -> nnx.State:
    """Random parameters on the host, as CLIP began; each follows from the seed and its name alone."""

    def sampled(path: tuple[Any, ...], leaf: nnx.Variable) -> nnx.Variable:
        random = named_generator(seed, parameter_name(path))
        mean, std = leaf.get_metadata("mean"), leaf.get_metadata("std")
        shape = leaf.get_value().shape
        value = mean + std * random.standard_normal(shape, np.float32) if std else np.full(shape, mean)
        return leaf.replace(np.asarray(value, np.float32))

    abstract = nnx.state(abstract_clip(architecture))
    state = jax.tree_util.tree_map_with_path(sampled, abstract, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    state["logit_scale"] = state["logit_scale"].replace(np.asarray(-math.log(temperature), np.float32))
    return state


def eos_positions(tokens: Int[Array, "B T"], end: int | None) -> Int[Array, "B"]:
    """Where texts end: at the first token `end`; with None at the first of the highest id, as CLIP was published."""
    return jnp.argmax(tokens if end is None else tokens == end, axis=1)


def normalize_rows(vectors: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """The vectors at norm 1; zeros stay zeros."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(axis=-1, keepdims=True), 1e-24))
