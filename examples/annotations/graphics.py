"""Images as the data sets have them: vector graphics rendered, transparency composed on white, encoded."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cm3leon_jax.errors import UserError

# Dots per inch that CSS has; sizes in millimeters follow from it.
_DPI = 96
# A vector graphic is rendered so much larger than asked for, and reduced.
_OVERSAMPLING = 2


def rasterize(svg: bytes, width: int, height: int) -> Image.Image:
    """Renders an SVG into the given size, stretched if need be.

    Raises:
      UserError: if the renderer is not installed, or cannot render it.
    """
    try:
        import resvg_py
    except ImportError:
        raise UserError("vector graphics are rendered by resvg: pip install resvg-py==0.5.0") from None
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg.decode(), width=_OVERSAMPLING * width, dpi=_DPI)
    except ValueError as error:
        raise UserError(f"a vector graphic of the packages cannot be rendered ({error})") from None
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA").resize((width, height), Image.Resampling.LANCZOS)


def opened(content: bytes) -> Image.Image:
    """An image file, its transparency kept."""
    return Image.open(io.BytesIO(content)).convert("RGBA")


def on_white(image: Image.Image, side: int | None = None) -> Image.Image:
    """An image composed on white; of a side, if one is given: by means of areas, so that nothing reaches over edges."""
    if side is not None and image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BOX)
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image.convert("RGBA"))
    return background.convert("RGB")


def as_image(pixels: UInt8[np.ndarray, "H W 3"]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def png(image: Image.Image) -> bytes:
    return _encoded(image, "PNG")


def jpeg(image: Image.Image) -> bytes:
    """A JPEG whose colors are not subsampled."""
    return _encoded(image, "JPEG", quality=95, subsampling=0)


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
