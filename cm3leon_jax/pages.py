"""Self-contained HTML pages: one stylesheet, no external resources, data shown with its control characters escaped."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

import jinja2
import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.images import encode_png
from cm3leon_jax.terminal import visible

# CSS pixels: images smaller than the first are enlarged by an integer factor, those larger than the second are shrunk.
_SMALLEST, _LARGEST = 64, 192


@dataclass(frozen=True)
class ImageStyle:
    """Size and scaling of the images on a page."""

    # Largest side in CSS pixels.
    side: int
    # Value of the CSS property `image-rendering`.
    rendering: str

    @classmethod
    def of(cls, resolution: int) -> ImageStyle:
        """Shows at least 64 CSS pixels, and about 128 of images that are not tiny."""
        if resolution >= _LARGEST:
            return cls(_LARGEST, "auto")
        factor = math.ceil(_SMALLEST / resolution) if resolution <= 16 else round(2 * _SMALLEST / resolution)
        return cls(resolution * max(1, factor), "pixelated")


def render(package: str, template: str, **values: object) -> str:
    """Renders a template of a folder of the package, HTML (which may include `page.css.jinja`) or Markdown."""
    loaders = [jinja2.PackageLoader("cm3leon_jax", package), jinja2.PackageLoader("cm3leon_jax", ".")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=jinja2.select_autoescape(disabled_extensions=("md.jinja",), default=True),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": lambda text: visible(str(text), keep="\n"),
        "comma": "{:,}".format,
        "number": number,
    }
    return environment.get_template(template).render(**values)


def number(value: float) -> str:
    """A number as people read it: whole ones in full, others to four digits."""
    is_whole = math.isfinite(value) and value == int(value) and abs(value) < 1e12
    return f"{value:,.0f}" if is_whole else f"{value:,.4g}"


def image_url(pixels: UInt8[np.ndarray, "height width C"]) -> str:
    """Encodes an image as a data URL."""
    return png_url(encode_png(pixels))


def png_url(png: bytes) -> str:
    """Encodes the bytes of a PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
