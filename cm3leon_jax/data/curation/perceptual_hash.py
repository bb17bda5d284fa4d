"""Perceptual hashes: 64 bits of an image that stay the same, or nearly, when it is resized or encoded again."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8, UInt64
from scipy import fft

# The side of the image that is transformed, and that of the square of its lowest frequencies.
SIDE, _LOW = 32, 8


def perceptual_hash(image: UInt8[np.ndarray, "32 32 1"]) -> int:
    """The signs of an image's lowest frequencies against their median (pHash: a discrete cosine transform)."""
    frequencies = fft.dctn(image[..., 0].astype(np.float64))[:_LOW, :_LOW].ravel()
    # Of an even area nothing but rounding is left.
    low = np.round(frequencies, 3)
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def distance(first: UInt64[np.ndarray, "n"], second: UInt64[np.ndarray, "n"]) -> UInt8[np.ndarray, "n"]:
    """In how many bits hashes differ."""
    return np.bitwise_count(first ^ second)
