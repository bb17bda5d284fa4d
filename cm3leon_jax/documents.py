"""A document: text and images in reading order, before any tokenizer has seen them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, unique

# Why an interleaved document is skipped that has too few of its images left.
TOO_FEW_IMAGES = "too few images"


@unique
class Role(IntEnum):
    """What a token is in its document."""

    # A given image, a text beside the matter, whatever stands between segments.
    CONTEXT = 0
    # What is asked, in words.
    INSTRUCTION = 1
    # What the model is to give; all of a document without a template.
    TARGET = 2
    # A code of a target image that differs from the image that it was edited from.
    CHANGED = 3
    # A retrieved document.
    RETRIEVED = 4


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
    # Of an instruction: the name of the template whose fields the segments are, in the order of `Template.fields`.
    template: str = ""
    # Of an interleaved document, how many images it has to have: it goes on without others that cannot be read, and is
    # cut into parts that fit a row. None: it is no document without any of them.
    min_images: int | None = None
    # Of an interleaved document, why the source left out an image or a text of it, one reason for each.
    omitted: tuple[str, ...] = ()
    # Of documents of which an epoch takes one, which follow each other: the number of the first. -1: there are no such.
    group: int = -1

    @property
    def text(self) -> str:
        """The text segments, joined by a newline."""
        return "\n".join(segment.text for segment in self.segments if isinstance(segment, TextSegment))
