"""Pixels as Inception-v3 takes them: any image resized to 299x299 RGB, as clean-fid or as pytorch-fid does.

The two give different distances; the filter of a resize alone moves a FID by several points (arXiv 2104.11222).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from cm3leon_jax.evaluation.inception import SIDE


def rgb(image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W 3"]:
    """Gray (1 channel) repeated, and what is transparent (2 or 4 channels) on white."""
    if image.shape[-1] in (2, 4):
        alpha = image[..., -1:] / 255
        image = np.round(image[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.broadcast_to(image, (*image.shape[:2], 3))


def antialiased(image: UInt8[np.ndarray, "H W C"]) -> Float32[np.ndarray, "299 299 3"]:
    """Resized as clean-fid does: Pillow's bicubic filter on each channel in float32, then clipped to 0 to 255."""
    channels = [
        np.asarray(Image.fromarray(channel).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for channel in np.moveaxis(rgb(image), -1, 0).astype(np.float32)
    ]
    return np.stack(channels, -1).clip(0, 255)


def bilinear(image: UInt8[np.ndarray, "H W C"]) -> Float32[np.ndarray, "299 299 3"]:
    """Resized as pytorch-fid does: from the two nearest pixels of each axis, large images too; 0 to 255."""
    height, width = image.shape[:2]
    return np.einsum("yh,hwc,xw->yxc", _between(height), rgb(image).astype(np.float32), _between(width), optimize=True)


@functools.cache
def _between(side: int) -> Float32[np.ndarray, "299 side"]:
    """The weights of a bilinear resize; pixels are squares, and beyond the outermost centers they go on."""
    at = ((np.arange(SIDE) + 0.5) * side / SIDE - 0.5).clip(0, side - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(side))).astype(np.float32)


# By the name of the package whose distances are the same: what it gives to the network, about -1 to 1.
PREPROCESSING: Mapping[str, Callable[[UInt8[np.ndarray, "H W C"]], Float32[np.ndarray, "299 299 3"]]] = {
    "clean-fid": lambda image: (antialiased(image) - 128) / 128,
    "pytorch-fid": lambda image: bilinear(image) / np.float32(127.5) - 1,
}
