"""A document: text and pictures in reading order, before any tokenizer has seen them."""

from __future__ import annotations

from dataclasses import dataclass

from cm3leon_jax.images import UnreadablePicture, encode_png, open_picture

__all__ = ["Document", "Picture", "Text", "UnreadablePicture", "encode_png", "open_picture"]


@dataclass(frozen=True)
class Text:
    """A text segment."""

    text: str


@dataclass(frozen=True)
class Picture:
    """An image segment: the bytes of an image file, of any format that `images` decodes."""

    encoded: bytes


@dataclass(frozen=True)
class Document:
    """Segments in order; the unit that is tokenized, retrieved, packed and masked."""

    segments: tuple[Text | Picture, ...]

    @property
    def text(self) -> str:
        """The text segments, joined by a newline."""
        return "\n".join(segment.text for segment in self.segments if isinstance(segment, Text))
