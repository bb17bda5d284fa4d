"""The encoder: texts and images to unit vectors, each on its own, so that a product says how near they are.

On disk it is a folder of `config.json`, which names its kind and its fingerprint, and the files of that kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from cm3leon_jax import counter_random

CONFIG_FILE = "config.json"


@runtime_checkable
class Encoder(Protocol):
    """Vectors have unit norm, or are zero for what says nothing (an empty text)."""

    # Width of a vector.
    dim: int
    # Equal for equal encoders; stored with everything that was found by its vectors.
    fingerprint: str

    def encode_texts(
        self, texts: Sequence[str], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Vectors of texts, each without a share of its tokens that `keys` choose, one key a text."""

    def encode_images(
        self, images: UInt8[np.ndarray, "n R R C"], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Vectors of images of any side, each without a share of its patches that `keys` choose."""


def dropped(count: int, dropout: float, key: int) -> Bool[np.ndarray, "count"]:
    """Which of a query's tokens or patches are left out; one always stays."""
    drawn = counter_random.uniform(key, np.arange(count))
    out = drawn < dropout
    if count and out.all():
        out[int(np.argmax(drawn))] = False
    return out


def l2_normalize(vectors: Float32[np.ndarray, "... dim"]) -> Float32[np.ndarray, "... dim"]:
    """Vectors of unit norm; zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
