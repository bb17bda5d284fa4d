"""Between an image's bytes and the network's range."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def to_unit_range(images: UInt8[Array, "B R R C"]) -> Float[Array, "B R R C"]:
    """0..255 -> [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def from_unit_range(pixels: Float[Array, "B R R C"]) -> UInt8[Array, "B R R C"]:
    """[-1, 1] -> 0..255, clamped and rounded."""
    return jnp.round((jnp.clip(pixels, -1, 1) + 1) * 127.5).astype(jnp.uint8)
