"""Structure maps of images: edges, soft edges, scribbles, blurred images, and segmentations from outlines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter
from scipy import ndimage

from cm3leon_jax.images import decode_image, encode_png
from cm3leon_jax.squaring import CENTER_CROP, Squaring

# The standard deviations of the Gaussian filters, as fractions of the image's side; at least a pixel.
_FINE, _COARSE, _BLUR = 1 / 200, 1 / 64, 1 / 32
# Below the lower fraction of the strongest gradient nothing is an edge, above the higher one everything (Canny's).
_WEAK, _STRONG = 0.1, 0.2

# White lines on black, as ControlNet's are.
_OFFSETS = ((0, 1), (1, 1), (1, 0), (1, -1))


def map_options(resolution: int, squaring: Squaring, **options: Any) -> str:
    """The options of `structure_map`, for squares of a resolution, and of a kind of maps its own."""
    # The default is left out, so that the options are those that were stored before there was another.
    how = {"squaring": dataclasses.asdict(squaring)} if squaring.description() else {}
    return json.dumps({"resolution": resolution, **options, **how})


def structure_map(encoded: bytes, kind: str, options: str) -> bytes:
    """Makes a structure map of an image file, as a PNG of the resolution at which an image tokenizer sees the image.

    Args:
      kind: one of `STRUCTURES`.
      options: what `map_options` gave.
    """
    found = json.loads(options)
    resolution, squaring = int(found["resolution"]), Squaring(**found.get("squaring", {}))
    if kind == "segmentation":
        return encode_png(segmentation(found["outlines"], found["width"], found["height"], resolution, squaring))
    return encode_png(STRUCTURES[kind](decode_image(encoded, resolution, 3, squaring)))


def edges(image: UInt8[np.ndarray, "R R 3"]) -> UInt8[np.ndarray, "R R 1"]:
    """Canny's edges: the crests of the gradient that are strong, or connected to strong ones."""
    return _as_pixels(_crests(image, _FINE))


def scribble(image: UInt8[np.ndarray, "R R 3"]) -> UInt8[np.ndarray, "R R 1"]:
    """The edges of a blurred image as thick strokes."""
    return _as_pixels(ndimage.binary_dilation(_crests(image, _COARSE), iterations=max(1, len(image) // 128)))


def soft_edges(image: UInt8[np.ndarray, "R R 3"]) -> UInt8[np.ndarray, "R R 1"]:
    """The gradient's magnitude."""
    magnitude = np.hypot(*_gradient(image, _FINE))
    return (255 * magnitude / max(float(magnitude.max()), 1e-6)).astype(np.uint8)[..., None]


def blur(image: UInt8[np.ndarray, "R R 3"]) -> UInt8[np.ndarray, "R R 3"]:
    """The image, blurred until small things are gone."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(len(image) * _BLUR)))


# What is made of an image alone, by the name of its template.
STRUCTURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "edges": edges,
    "soft_edges": soft_edges,
    "scribble": scribble,
    "blur": blur,
}


def _gradient(
    image: UInt8[np.ndarray, "R R 3"], fraction: float
) -> tuple[Float[np.ndarray, "R R"], Float[np.ndarray, "R R"]]:
    gray = ndimage.gaussian_filter(image.mean(-1), max(1, fraction * len(image)))
    return ndimage.sobel(gray, 0), ndimage.sobel(gray, 1)


def _crests(image: UInt8[np.ndarray, "R R 3"], fraction: float) -> Bool[np.ndarray, "R R"]:
    down, right = _gradient(image, fraction)
    magnitude = np.hypot(down, right)
    # The direction of the gradient to the nearest of four, and the neighbors on its both sides.
    direction = np.round(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    padded = np.pad(magnitude, 1)
    is_crest = np.zeros(magnitude.shape, bool)
    for number, (y, x) in enumerate(_OFFSETS):
        size = len(magnitude)
        after = padded[1 + y : 1 + y + size, 1 + x : 1 + x + size]
        before = padded[1 - y : 1 - y + size, 1 - x : 1 - x + size]
        # Of two equal ones, the first.
        is_crest |= (direction == number) & (magnitude >= after) & (magnitude > before)
    strongest = float(magnitude.max())
    if strongest < 1:
        return np.zeros(magnitude.shape, bool)
    weak = is_crest & (magnitude > _WEAK * strongest)
    labels, count = ndimage.label(weak, np.ones((3, 3)))
    kept = np.zeros(count + 1, bool)
    kept[np.unique(labels[weak & (magnitude > _STRONG * strongest)])] = True
    kept[0] = False
    return kept[labels]


def _as_pixels(is_line: Bool[np.ndarray, "R R"]) -> UInt8[np.ndarray, "R R 1"]:
    return np.where(is_line, 255, 0).astype(np.uint8)[..., None]


def segmentation(
    outlines: list[Any], width: int | float, height: int | float, resolution: int, squaring: Squaring = CENTER_CROP
) -> UInt8[np.ndarray, "R R 3"]:
    """Areas in the colors of their classes, the later above the earlier, on black; a pixel is that of its center.

    Args:
      outlines: [number of a class, polygons] of each area, [x0, y0, x1, y1, ...] in pixels of the image file.
      width: that of the image file, as the outlines have it.
    """
    scaled_width, scaled_height, left, top = squaring.frame(width, height, resolution)
    areas = np.zeros((resolution, resolution, 3), np.uint8)
    for number, polygons in outlines:
        for polygon in polygons:
            across = np.array(polygon[::2]) * (scaled_width / width) - left
            down = np.array(polygon[1::2]) * (scaled_height / height) - top
            areas[_inside(across, down, resolution)] = class_color(number)
    return areas


def _inside(across: Float[np.ndarray, "n"], down: Float[np.ndarray, "n"], resolution: int) -> Bool[np.ndarray, "R R"]:
    """The pixels whose centers are in a polygon: those with an odd number of its edges to the left of them."""
    centers = np.arange(resolution)[:, None] + 0.5
    next_across, next_down = np.roll(across, -1), np.roll(down, -1)
    rows, edges = np.nonzero((down <= centers) != (next_down <= centers))
    fractions = (rows + 0.5 - down[edges]) / (next_down[edges] - down[edges])
    crossings = across[edges] + fractions * (next_across[edges] - across[edges])
    # From the first pixel on whose center is at the crossing or to the right of it.
    columns = np.clip(np.ceil(crossings - 0.5), 0, resolution).astype(np.int64)
    counts = np.zeros((resolution, resolution + 1), np.int64)
    np.add.at(counts, (rows, columns), 1)
    return counts.cumsum(axis=1)[:, :resolution] % 2 == 1


def class_color(number: int) -> tuple[int, int, int]:
    """The color of a class: the bits of its number, the first as the highest of red, green and blue in turn."""
    channels = [0, 0, 0]
    for bit in range(24):
        if number >> bit & 1:
            channels[bit % 3] |= 128 >> (bit // 3)
    return channels[0], channels[1], channels[2]
