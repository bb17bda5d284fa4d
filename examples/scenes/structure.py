"""Maps of an image's structure: its edges, and which object each pixel belongs to."""

from __future__ import annotations

import colorsys
from functools import cache

import numpy as np
from jaxtyping import UInt8

from examples.scenes.pictures import HORIZON, KINDS, SIDE, Scene, glyph

# A step of any channel from a pixel to the next, of 255, that is an edge.
_MIN_STEP = 40
_GOLDEN_RATIO = 0.6180339887
_SKY, _GROUND = (235, 235, 235), (60, 60, 60)


def edges(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """White lines on black where an image differs from the pixel below or to the right."""
    pixels = image.astype(np.int16)
    is_edge = np.zeros(image.shape[:2], bool)
    is_edge[:-1] |= np.abs(np.diff(pixels, axis=0)).max(axis=-1) >= _MIN_STEP
    is_edge[:, :-1] |= np.abs(np.diff(pixels, axis=1)).max(axis=-1) >= _MIN_STEP
    return np.repeat(np.where(is_edge, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)


def segmentation(scene: Scene) -> UInt8[np.ndarray, "32 32 3"]:
    """Each object's pixels in the color of its kind, on light gray for the sky and dark gray for the ground."""
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[:HORIZON], image[HORIZON:] = _SKY, _GROUND
    for each in scene.objects:
        left, top, right, bottom = each.box
        image[top:bottom, left:right][glyph(each.kind)[..., 3] > 0.5] = _kind_colors()[each.kind]
    return image


@cache
def _kind_colors() -> dict[str, tuple[int, int, int]]:
    """Hues by the golden ratio, so that those of the first n are far apart for every n; every other one is dark."""
    colors: dict[str, tuple[int, int, int]] = {}
    for index, kind in enumerate(KINDS):
        red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1, 1.0, 0.6 if index % 2 else 1.0)
        colors[kind] = round(255 * red), round(255 * green), round(255 * blue)
    return colors
