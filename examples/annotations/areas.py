"""A detector of regions of maps: where each color is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from cm3leon_jax.evaluation.detections import Detection
from examples.annotations.colors import COLORS, name_colors

# As fractions of an image: what is no region, and what is no part of one.
_LEAST_AREA, _LEAST_PART = 0.02, 0.01


@dataclass(frozen=True)
class ColorAreas:
    """Finds at most one region of each color, such as "green region": all its parts that are large enough.

    What color a pixel has is known by its levels alone, so that a box of a real map is right but for its edges.
    """

    def __call__(self, images: UInt8[np.ndarray, "n R R C"]) -> Sequence[Sequence[Detection]]:
        return [self._found(image) for image in images]

    def _found(self, image: UInt8[np.ndarray, "R R C"]) -> list[Detection]:
        named = name_colors(image)
        found = []
        for index, color in enumerate(COLORS):
            area = _large_parts(named == index)
            if area.mean() >= _LEAST_AREA:
                rows, columns = np.flatnonzero(area.any(1)), np.flatnonzero(area.any(0))
                box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
                found.append(Detection(f"{color} region", box, 1.0))
        return found


def _large_parts(mask: Bool[np.ndarray, "R R"]) -> Bool[np.ndarray, "R R"]:
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return (sizes >= _LEAST_PART * mask.size)[labels]
