"""Judges the color of objects in images: by zero-shot classification of each object's box, as GenEval does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from cm3leon_jax.encoders.base import Encoder, l2_normalize, load_encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.detections import Box, Detection
from cm3leon_jax.evaluation.judge_files import JudgePath

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


@runtime_checkable
class ColorJudge(Protocol):
    """Says which color objects have; a frozen dataclass whose fields are its options."""

    def __call__(self, image: UInt8[np.ndarray, "R R C"], objects: Sequence[Detection]) -> Sequence[str]:
        """Returns the color of each object of an image."""
        ...


@dataclass(frozen=True)
class EncoderColors:
    """The color whose texts an encoder such as CLIP finds most like the object's box (arXiv 2310.11513, section 3)."""

    # The folder of an encoder that compares texts with images.
    encoder: JudgePath

    @cached_property
    def _encoder(self) -> Encoder:
        encoder = load_encoder(self.encoder)
        if not encoder.is_joint:
            raise UserError(f"the encoder {self.encoder} judges no colors: it does not compare texts with images")
        return encoder

    def __call__(self, image: UInt8[np.ndarray, "R R C"], objects: Sequence[Detection]) -> list[str]:
        if not objects:
            return []
        texts = self._texts(objects[0].name)
        return [COLORS[int(np.argmax(texts @ self._of_box(image, each.box)))] for each in objects]

    def _texts(self, name: str) -> Float32[np.ndarray, "10 dim"]:
        texts = [template.format(color=color, name=name) for color in COLORS for template in _TEMPLATES]
        vectors = self._encoder.encode_texts(texts)
        return l2_normalize(vectors.reshape(len(COLORS), len(_TEMPLATES), -1).mean(axis=1))

    def _of_box(self, image: UInt8[np.ndarray, "R R C"], box: Box) -> Float32[np.ndarray, "dim"]:
        bounds = np.clip(box, 0, image.shape[0])
        left, top = np.minimum(np.floor(bounds[:2]).astype(int), image.shape[0] - 1)
        right, bottom = np.maximum(np.ceil(bounds[2:]).astype(int), (left + 1, top + 1))
        vectors: Float32[np.ndarray, "1 dim"] = self._encoder.encode_images(_square(image[top:bottom, left:right]))
        return vectors[0]


def _square(crop: UInt8[np.ndarray, "h w C"]) -> UInt8[np.ndarray, "1 s s C"]:
    """The crop in the middle of a gray square, which keeps its shape."""
    height, width, channels = crop.shape
    side = max(height, width)
    square = np.full((1, side, side, channels), 0x99, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[0, top : top + height, left : left + width] = crop
    return square
