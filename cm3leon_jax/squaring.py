"""How an image file of any shape becomes a square, and what is seen where it is transparent or has no pixels."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated

from PIL import ImageColor

from cm3leon_jax.errors import UserError
from cm3leon_jax.ranges import OneOf, first_fault


@dataclass(frozen=True)
class Squaring:
    """How images become squares: for the tokens, the trainings and the prompts of a run alike."""

    # "crop": the short side is scaled to the square's, and the center cut out; "pad": the long side is, and what is
    # missing above and below, or left and right, has the color of the background.
    method: Annotated[str, OneOf("crop", "pad")] = "crop"
    # What transparent pixels and the padding show: the name of a color in HTML, or "#rrggbb".
    background: str = "white"
    # How pixels are scaled. "lanczos", Chameleon's and the usual one; "bicubic", after the image was halved by means of
    # blocks for as long as that leaves it twice as large (ADM, LlamaGen, Janus); "bilinear", between the nearest four
    # pixels, without those that are skipped (OpenCV, taming). Other people's image tokenizers expect theirs.
    filter: Annotated[str, OneOf("lanczos", "bicubic", "bilinear")] = "lanczos"

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.corpus.squaring.{fault}")
        try:
            is_opaque = len(ImageColor.getrgb(self.background)) == 3
        except ValueError:
            is_opaque = False
        if not is_opaque:
            raise UserError(
                f"config.corpus.squaring.background is {self.background!r}: give a color such as 'white' or '#7f7f7f'"
            )

    @property
    def color(self) -> tuple[int, int, int]:
        """Red, green and blue of the background."""
        return _color(self.background)

    @property
    def gray(self) -> int:
        """The background in an image of one channel."""
        return int(ImageColor.getcolor(self.background, "L"))  # type: ignore[arg-type]

    def frame(self, width: int | float, height: int | float, resolution: int) -> tuple[int, int, int, int]:
        """The width and height that an image is scaled to, and the left and top of the square in it.

        These are negative where the square reaches over the image.
        """
        if self.method == "crop":
            scale = resolution / min(width, height)
            size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
        else:
            scale = resolution / max(width, height)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return *size, (size[0] - resolution) // 2, (size[1] - resolution) // 2

    def description(self) -> str:
        """What tells it from the default, on one line; empty if nothing does."""
        scaled = "" if self.filter == CENTER_CROP.filter else f", {self.filter}"
        return "" if self == CENTER_CROP else f"{self.method}, on {self.background}{scaled}"


# The default.
CENTER_CROP = Squaring()


@functools.cache
def _color(background: str) -> tuple[int, int, int]:
    red, green, blue = ImageColor.getrgb(background)[:3]
    return red, green, blue
