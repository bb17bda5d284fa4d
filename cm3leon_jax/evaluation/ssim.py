"""Structural similarity of images (Wang et al. 2004)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, UInt8
from scipy import ndimage

_K1, _K2, _RANGE = 0.01, 0.03, 255
# Of the Gaussian window: standard deviation, and pixels on each side of its center.
_SIGMA, _RADIUS = 1.5, 5
# The side of the uniform window.
_UNIFORM = 7

# Each window with the side of the smallest image that it is for.
WINDOWS = {"gaussian": 2 * _RADIUS + 1, "uniform": _UNIFORM}


def ssim(
    originals: UInt8[np.ndarray, "n R R C"], others: UInt8[np.ndarray, "n R R C"], window: str
) -> Float64[np.ndarray, "n"]:
    """The mean similarity of each pair of images, over channels and the windows that lie within the image.

    Args:
      originals: of at least `WINDOWS[window]` pixels on a side.
      others: the same shape.
      window: "gaussian" is as in the paper (scikit-image: gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False), "uniform" of 7x7 pixels is scikit-image's default.
    """
    return np.array([_similarity(a, b, window) for a, b in zip(originals, others, strict=True)])


def _similarity(original: UInt8[np.ndarray, "R R C"], other: UInt8[np.ndarray, "R R C"], window: str) -> float:
    x, y = original.astype(np.float64), other.astype(np.float64)
    # The uniform window's variances are those of a sample.
    correction = 1.0 if window == "gaussian" else _UNIFORM**2 / (_UNIFORM**2 - 1)
    mean_x, mean_y = _filtered(x, window), _filtered(y, window)
    variance_x = correction * (_filtered(x * x, window) - mean_x**2)
    variance_y = correction * (_filtered(y * y, window) - mean_y**2)
    covariance = correction * (_filtered(x * y, window) - mean_x * mean_y)
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    edge = WINDOWS[window] // 2
    return float(similarity[edge:-edge, edge:-edge].mean())


def _filtered(values: Float64[np.ndarray, "R R C"], window: str) -> Float64[np.ndarray, "R R C"]:
    if window == "gaussian":
        return ndimage.gaussian_filter(values, (_SIGMA, _SIGMA, 0), radius=(_RADIUS, _RADIUS, 0))
    return ndimage.uniform_filter(values, (_UNIFORM, _UNIFORM, 1))
