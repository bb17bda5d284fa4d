"""Self-contained HTML pages: one look for all, nothing loaded from elsewhere, nothing hidden in texts of data."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

import jinja2
import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.images import encode_png
from cm3leon_jax.terminal import visible

# Pixels on the page: images smaller than this are enlarged by a whole factor, those larger than the second are shrunk.
_SMALLEST, _LARGEST = 64, 192


@dataclass(frozen=True)
class ImageStyle:
    """How images of one resolution are shown."""

    # Side in CSS pixels, where there is room for it.
    side: int
    # Value of `image-rendering`: enlarged pixels keep their edges.
    rendering: str

    @classmethod
    def of(cls, resolution: int) -> ImageStyle:
        """At least 64 CSS pixels, about 128 where the image has enough of its own to fill them."""
        if resolution >= _LARGEST:
            return cls(_LARGEST, "auto")
        factor = math.ceil(_SMALLEST / resolution) if resolution <= 16 else round(2 * _SMALLEST / resolution)
        return cls(resolution * max(1, factor), "pixelated")


def render(package: str, template: str, **values: object) -> str:
    """Fills a template that lies in a package of cm3leon_jax; it may include `page.css.jinja`."""
    loaders = [jinja2.PackageLoader("cm3leon_jax", package), jinja2.PackageLoader("cm3leon_jax", ".")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = lambda text: visible(str(text), keep="\n")
    return environment.get_template(template).render(**values)


def image_url(pixels: UInt8[np.ndarray, "height width C"]) -> str:
    """An image as a data URL."""
    return png_url(encode_png(pixels))


def png_url(png: bytes) -> str:
    """The bytes of a PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
