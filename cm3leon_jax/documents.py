"""A document: text and pictures in reading order, before any tokenizer has seen them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError


class UnreadablePicture(Exception):
    """The bytes of an image segment are not a picture that can be opened."""


@dataclass(frozen=True)
class Text:
    """A text segment."""

    text: str


@dataclass(frozen=True)
class Picture:
    """An image segment: the bytes of a PNG, JPEG or any other file that Pillow opens."""

    encoded: bytes


@dataclass(frozen=True)
class Document:
    """Segments in order; the unit that is tokenized, retrieved, packed and masked."""

    segments: tuple[Text | Picture, ...]

    @property
    def text(self) -> str:
        """The text segments, joined by a newline."""
        return "\n".join(segment.text for segment in self.segments if isinstance(segment, Text))


def open_picture(encoded: bytes, resolution: int, channels: int) -> UInt8[np.ndarray, "R R C"]:
    """Decodes, puts transparent pixels on white, scales the short side to `resolution` (Lanczos), crops the centre.

    Raises:
      UnreadablePicture: if Pillow cannot read the bytes.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            file.load()
            image: Image.Image = file
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            image = image.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadablePicture(str(error) or type(error).__name__) from None
    width, height = image.size
    scale = resolution / min(width, height)
    size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    pixels = np.asarray(image.crop((left, top, left + resolution, top + resolution)))
    return pixels.reshape(resolution, resolution, channels)


def encode_png(pixels: UInt8[np.ndarray, "R1 R2 C"]) -> bytes:
    """PNG bytes of one picture of one (grey) or three channels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()
