"""SigLIP (Zhai et al., arXiv 2303.15343): CLIP's layers; images are pooled by attention, texts at the last token.

Shapes: B batch, T text tokens, P patches, D tower, H heads, Dh head size, E embedding, R pixels along a side. All is
float32. The layers are those of CLIP, whose module says how parameters are named and sharded.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cm3leon_jax.encoders.clip.model import (
    CHANNELS,
    ClipFeedForward,
    ClipLayerNorm,
    Tower,
    parameter,
    stacked,
    through,
)
from cm3leon_jax.models.attention import masked_attention


@dataclass(frozen=True)
class SiglipArchitecture:
    """The shapes of both towers and of what they read; an embedding is as wide as the image tower."""

    vocabulary_size: int
    max_text_tokens: int
    resolution: int
    patch_size: int
    text: Tower
    image: Tower

    @property
    def embedding_dim(self) -> int:
        return self.image.dim

    @property
    def grid(self) -> int:
        """Patches along a side; the last pixels, where they fill no patch, are not seen (so400m-patch14-384)."""
        return self.resolution // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2


class SiglipTextTower(nnx.Module):
    """Transformer without a causal mask over a row of one length; a text is the state at the row's last token."""

    def __init__(self, architecture: SiglipArchitecture) -> None:
        tower, length = architecture.text, architecture.max_text_tokens
        self.token_embedding = parameter((architecture.vocabulary_size, tower.dim), 0.0, ("vocab", "embed"))
        self.position_embedding = parameter((length, tower.dim), 0.0, ("position", "embed"))
        self.blocks = stacked(tower)
        self.final_norm = ClipLayerNorm(tower)
        self.projection = parameter((tower.dim, architecture.embedding_dim), 0.0, ("embed", "position"))
        self.projection_bias = parameter((architecture.embedding_dim,), 0.0, ("position",))

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """Embeddings of texts, not of unit norm; padding is read like any token."""
        length = tokens.shape[1]
        x = self.token_embedding[...][tokens] + self.position_embedding[...]
        x = through(self.blocks, x, jnp.ones((length, length), bool))
        return self.final_norm(x[:, -1]) @ self.projection[...] + self.projection_bias[...]


class SiglipPooling(nnx.Module):
    """Attention of one learned query, the probe, to all patches, then a feed-forward layer."""

    def __init__(self, tower: Tower) -> None:
        D, H, Dh = tower.dim, tower.num_heads, tower.head_dim
        self.probe = parameter((1, 1, D), 0.0, ("position", "position", "embed"))
        # In the order query, key, value, as they are stored together.
        self.query_key_value = parameter((3, D, H, Dh), 0.0, ("position", "embed", "heads", "head"))
        self.query_key_value_bias = parameter((3, H, Dh), 0.0, ("position", "heads", "head"))
        self.output = parameter((H, Dh, D), 0.0, ("heads", "head", "embed"))
        self.output_bias = parameter((D,), 0.0, ("embed",))
        self.norm = ClipLayerNorm(tower)
        self.feed_forward = ClipFeedForward(tower)

    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B D"]:
        """What the probe finds in each image."""
        B, P, D = x.shape
        weights, biases = self.query_key_value[...], self.query_key_value_bias[...]
        query = jnp.einsum("BLD,DHd->BLHd", jnp.broadcast_to(self.probe[...], (B, 1, D)), weights[0]) + biases[0]
        key, value = (jnp.einsum("BPD,DHd->BPHd", x, weights[part]) + biases[part] for part in (1, 2))
        attended = masked_attention(query, key, value, jnp.ones((B, 1, P), bool))
        pooled = jnp.einsum("BLHd,HdD->BLD", attended, self.output[...]) + self.output_bias[...]
        return (pooled + self.feed_forward(self.norm(pooled)))[:, 0]


class SiglipImageTower(nnx.Module):
    """Vision transformer over patches alone."""

    def __init__(self, architecture: SiglipArchitecture) -> None:
        tower, side = architecture.image, architecture.patch_size
        self.patch_size, self.grid = side, architecture.grid
        self.patch_embedding = parameter((side, side, CHANNELS, tower.dim), 0.0, ("position",) * 3 + ("embed",))
        self.patch_embedding_bias = parameter((tower.dim,), 0.0, ("embed",))
        self.position_embedding = parameter((architecture.num_patches, tower.dim), 0.0, ("position", "embed"))
        self.blocks = stacked(tower)
        self.final_norm = ClipLayerNorm(tower)
        self.pooling = SiglipPooling(tower)

    def __call__(self, pixels: Float[Array, "B R R 3"], kept: Bool[Array, "B P"] | None = None) -> Float[Array, "B E"]:
        """Embeddings of images (normalized to mean 0), not of unit norm; pixels of patches that are not kept are 0."""
        side, grid, B = self.patch_size, self.grid, len(pixels)
        seen = pixels[:, : grid * side, : grid * side]
        patches = seen.reshape(B, grid, side, grid, side, CHANNELS).swapaxes(2, 3)
        patches = patches.reshape(B, grid * grid, side, side, CHANNELS)
        if kept is not None:
            patches = jnp.where(kept[:, :, None, None, None], patches, 0)
        x = jnp.einsum("BPpqC,pqCD->BPD", patches, self.patch_embedding[...]) + self.patch_embedding_bias[...]
        x = through(self.blocks, x + self.position_embedding[...], jnp.ones((grid * grid, grid * grid), bool))
        return self.pooling(self.final_norm(x))


class Siglip(nnx.Module):
    """Both towers; a pair's logit is the product of its vectors times exp(`logit_scale`) plus `logit_bias`."""

    def __init__(self, architecture: SiglipArchitecture) -> None:
        self.text = SiglipTextTower(architecture)
        self.image = SiglipImageTower(architecture)
        self.logit_scale = parameter((1,), 0.0, ("position",))
        self.logit_bias = parameter((1,), 0.0, ("position",))


def abstract_siglip(architecture: SiglipArchitecture) -> Siglip:
    """The module with shapes in place of arrays; nothing is allocated."""
    return nnx.eval_shape(lambda: Siglip(architecture))
