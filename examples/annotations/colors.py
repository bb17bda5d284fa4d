"""Names of colors, where a color has one that nobody would doubt; what is between two names has none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int8, UInt8

# Each with its first and last hue in degrees and its least saturation and value: to some, pale red is pink, and dark
# orange brown.
_HUES = {
    "red": (-12, 12, 0.6, 0.6),
    "orange": (22, 42, 0.6, 0.75),
    "yellow": (50, 66, 0.25, 0.75),
    "green": (85, 155, 0.25, 0.35),
    "cyan": (172, 186, 0.25, 0.6),
    "blue": (202, 250, 0.25, 0.35),
    "purple": (264, 286, 0.25, 0.35),
    "pink": (300, 336, 0.25, 0.6),
}
# Without a hue, by value.
_GRAYS = {"black": (0.0, 0.15), "gray": (0.35, 0.8), "white": (0.95, 1.0)}
_MOST_SATURATION_OF_GRAY = 0.08

COLORS: tuple[str, ...] = (*_HUES, *_GRAYS)
UNNAMED = -1


def name_colors(pixels: UInt8[np.ndarray, "*shape 3"]) -> Int8[np.ndarray, "*shape"]:
    """The index in `COLORS` of each pixel's color, or `UNNAMED`."""
    hue, saturation, value = _hsv(pixels)
    found = np.full(pixels.shape[:-1], UNNAMED, np.int8)
    for index, (first, last, least_saturation, least_value) in enumerate(_HUES.values()):
        is_hue = ((hue >= first) & (hue <= last)) | (hue - 360 >= first)
        found[is_hue & (saturation >= least_saturation) & (value >= least_value)] = index
    for index, (low, high) in enumerate(_GRAYS.values(), start=len(_HUES)):
        is_gray = (saturation <= _MOST_SATURATION_OF_GRAY) | (value <= _GRAYS["black"][1])
        found[is_gray & (value >= low) & (value <= high)] = index
    return found


def color_name(color: Sequence[int]) -> str | None:
    """The name of one color; None if it is between two."""
    index = int(name_colors(np.array(color, np.uint8)))
    return None if index == UNNAMED else COLORS[index]


def color_fractions(pixels: UInt8[np.ndarray, "*shape 3"]) -> dict[str, float]:
    """The fraction of the pixels that each color has, the most frequent first, those that are there alone."""
    named = name_colors(pixels)
    fractions = {name: float(np.mean(named == index)) for index, name in enumerate(COLORS)}
    return {name: each for name, each in sorted(fractions.items(), key=lambda item: -item[1]) if each}


def _hsv(
    pixels: UInt8[np.ndarray, "*shape 3"],
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """Hue in degrees, saturation and value from 0 to 1."""
    red, green, blue = np.moveaxis(pixels.astype(np.float64) / 255, -1, 0)
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    divisor = np.where(chroma > 0, chroma, 1)
    hue = np.select(
        [value == red, value == green],
        [(green - blue) / divisor % 6, (blue - red) / divisor + 2],
        (red - green) / divisor + 4,
    )
    return np.where(chroma > 0, 60 * hue, 0), chroma / np.where(value > 0, value, 1), value
