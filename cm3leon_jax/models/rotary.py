"""Rotary position embedding (RoPE, arXiv 2104.09864): each pair of a head's numbers is rotated by the token's position.

Pair i turns by base**(-2i / Dh) per token. Models that went on with longer rows than they began with have stretched
wavelengths: `config.rotary_scaling`.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cm3leon_jax.models.config import ModelConfig


def rotary_angles(
    positions: Int[Array, "B L"], image_positions: Int[Array, "B L"], config: ModelConfig
) -> Float[Array, "B L P"]:
    """The angle by which each pair of a head is rotated at each token (arXiv 2104.09864, section 3.2.2).

    With `config.rotary_image_positions` every other pair is rotated by the image position instead (as in arXiv
    2409.12191, section 2.1): the same position in two images is then the same distance apart wherever they stand.
    """
    half, pair = config.head_dim // 2, jnp.arange(config.head_dim // 2)
    if not config.rotary_image_positions:
        return positions[..., None] * _scaled(config.rotary_base ** (-pair / half), config)
    by = jnp.where(pair % 2 == 0, image_positions[..., None], positions[..., None])
    # Both kinds of position have frequencies from the highest on.
    return by * _scaled(config.rotary_base ** (-(pair - pair % 2) / half), config)


def rotate(x: Float[Array, "B L H Dh"], angles: Float[Array, "B L P"]) -> Float[Array, "B L H Dh"]:
    """Rotates the pairs (i, i + Dh/2) of each head (arXiv 2104.09864, equation 34)."""
    half = x.shape[-1] // 2
    sin, cos = jnp.sin(angles)[:, :, None].astype(x.dtype), jnp.cos(angles)[:, :, None].astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _scaled(frequencies: Float[Array, "P"], config: ModelConfig) -> Float[Array, "P"]:
    """The frequencies of pairs, in radians per token, divided as `config.rotary_scaling` says."""
    if config.rotary_scaling == "none":
        return frequencies
    stretched = frequencies / config.rotary_scaling_factor
    if config.rotary_scaling == "linear":
        return stretched
    # Llama 3.1's: by how often a pair turned around in a row of pretraining.
    turns = config.rotary_original_length * frequencies / (2 * math.pi)
    low, high = config.rotary_low_freq_factor, config.rotary_high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return kept * frequencies + (1 - kept) * stretched
