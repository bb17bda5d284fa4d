"""Images that are made when they are looked at: as many at a time as a metric takes, whatever their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.requests import ImageSource, read_image
from cm3leon_jax.image_tokenizers.base import ImageTokenizer
from cm3leon_jax.images import UnreadableImage, decode_image
from cm3leon_jax.squaring import CENTER_CROP, Squaring


@runtime_checkable
class ImageArray(Protocol):
    """Images by index, as an array of pixels or as something that makes them; `images[start:stop]` are pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> UInt8[np.ndarray, "n R R C"]: ...


class CodedImages:
    """Images held as codes, and decoded by the image tokenizer."""

    def __init__(self, codes: Int[np.ndarray, "n codes"], image_tokenizer: ImageTokenizer) -> None:
        self.codes, self._image_tokenizer = codes, image_tokenizer

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: slice) -> UInt8[np.ndarray, "n R R C"]:
        codes = self.codes[index]
        # A power of two, to which the codes are padded: few shapes, since the decoder is compiled for each.
        return self._image_tokenizer.decode(codes, 1 << max(0, len(codes) - 1).bit_length())


class ImageFiles:
    """Image files, decoded to squares of the model's resolution."""

    def __init__(
        self, sources: Sequence[ImageSource], resolution: int, channels: int, squaring: Squaring = CENTER_CROP
    ) -> None:
        self.sources, self._shape, self._squaring = list(sources), (resolution, resolution, channels), squaring

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: slice) -> UInt8[np.ndarray, "n R R C"]:
        side, _, channels = self._shape
        found = self.sources[index]
        return (
            np.stack([_decoded(source, side, channels, self._squaring) for source in found]) if found else self._none()
        )

    def _none(self) -> UInt8[np.ndarray, "0 R R C"]:
        return np.zeros((0, *self._shape), np.uint8)


def _decoded(source: ImageSource, resolution: int, channels: int, squaring: Squaring) -> UInt8[np.ndarray, "R R C"]:
    try:
        return decode_image(read_image(source), resolution, channels, squaring)
    except (OSError, ValueError, UnreadableImage) as error:
        name = "an image" if isinstance(source, bytes) else f"the image {source}"
        raise UserError(
            f"{name} of an evaluation set cannot be read ({error}): give a PNG, a JPEG or the like"
        ) from None
