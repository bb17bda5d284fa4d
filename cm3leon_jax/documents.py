"""A document: text and images in reading order, before any tokenizer has seen them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextSegment:
    """A text segment."""

    text: str


@dataclass(frozen=True)
class ImageSegment:
    """An image segment: the bytes of an image file, of any format that `images` decodes."""

    encoded: bytes


@dataclass(frozen=True)
class Document:
    """Segments in order; the unit that is tokenized, retrieved, packed and masked."""

    segments: tuple[TextSegment | ImageSegment, ...]

    @property
    def text(self) -> str:
        """The text segments, joined by a newline."""
        return "\n".join(segment.text for segment in self.segments if isinstance(segment, TextSegment))
