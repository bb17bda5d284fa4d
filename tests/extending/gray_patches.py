"""A user's image tokenizer: each 2x2 patch of a black and white image is a code."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int, UInt8

from cm3leon_jax.image_tokenizers.base import ImageTokenizer
from cm3leon_jax.image_tokenizers.config import IMAGE_TOKENIZERS, ImageTokenizerConfig


@dataclass(frozen=True)
class GrayPatchesConfig(ImageTokenizerConfig):
    """Sizes, which follow from the patches."""

    implementation: ClassVar[str] = f"{__name__}:GrayPatches"

    family: str = "gray_patches"
    resolution: int = 8
    in_channels: int = 1
    codebook_size: int = 16

    @property
    def grid(self) -> int:
        """Codes along one side of an image."""
        return self.resolution // 2


class GrayPatches(ImageTokenizer):
    """A code is four bits, one per pixel."""

    def encode_batch(self, images: UInt8[np.ndarray, "B R R C"]) -> Int[np.ndarray, "B L"]:
        """Codes of images."""
        grid = self.config.grid
        bits = (images[..., 0] >= 128).reshape(-1, grid, 2, grid, 2).swapaxes(2, 3)
        return (bits.reshape(-1, grid * grid, 4) @ np.array([8, 4, 2, 1])).astype(np.int32)

    def decode_batch(self, codes: Int[np.ndarray, "B L"]) -> UInt8[np.ndarray, "B R R C"]:
        """Images of codes."""
        grid, side = self.config.grid, self.config.resolution
        bits = (codes[..., None] // np.array([8, 4, 2, 1])) % 2
        pixels = bits.reshape(-1, grid, grid, 2, 2).swapaxes(2, 3).reshape(-1, side, side, 1)
        return (255 * pixels).astype(np.uint8)


IMAGE_TOKENIZERS.add("gray_patches", f"{__name__}:GrayPatchesConfig")
