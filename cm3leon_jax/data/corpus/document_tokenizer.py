"""Makes ids of documents, with the codes of any image tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.documents import Document, ImageSegment
from cm3leon_jax.images import UnreadableImage, decode_image
from cm3leon_jax.vocabulary import Vocabulary


@runtime_checkable
class ImageEncoder(Protocol):
    """What the corpus needs of an image tokenizer."""

    # Of its weights; stored in the manifest.
    fingerprint: str
    # Has `resolution`, `in_channels`, `codebook_size`, `grid` and `image_length`.
    config: Any

    def encode(self, images: UInt8[np.ndarray, "B R R C"], batch_size: int) -> Int[np.ndarray, "B image_length"]:
        """Codes of images, `batch_size` at a time."""


@dataclass(frozen=True)
class DecodedDocument:
    """A document with its text as ids and its images as pixels; among the segments, None stands for an image."""

    segments: tuple[list[int] | None, ...]
    images: tuple[UInt8[np.ndarray, "R R C"], ...]


@dataclass(frozen=True)
class DocumentTokenizer:
    """Makes ids of documents."""

    vocabulary: Vocabulary
    image_tokenizer: ImageEncoder
    batch_size: int

    def decode(self, document: Document | SkippedExample) -> DecodedDocument | SkippedExample:
        """Decodes the images and tokenizes the text; the codes of images come later, many at a time."""
        if isinstance(document, SkippedExample):
            return document
        config = self.image_tokenizer.config
        segments: list[list[int] | None] = []
        images = []
        for number, segment in enumerate(document.segments):
            if not isinstance(segment, ImageSegment):
                segments.append(self.vocabulary.encode_text(segment.text))
                continue
            try:
                images.append(decode_image(segment.encoded, config.resolution, config.in_channels))
            except UnreadableImage as error:
                return SkippedExample(f"unreadable image: segment {number}: {error}")
            segments.append(None)
        if not any(segment is None or segment for segment in segments):
            return SkippedExample("empty document")
        return DecodedDocument(tuple(segments), tuple(images))

    def length(self, document: DecodedDocument) -> int:
        image_length = self.image_tokenizer.config.image_length
        return sum(image_length if s is None else len(s) for s in document.segments) + len(document.segments) - 1

    def encode(self, images: list[UInt8[np.ndarray, "R R C"]]) -> Int[np.ndarray, "n image_length"]:
        """Ids of images."""
        return self.vocabulary.encode_image(self.image_tokenizer.encode(np.stack(images), self.batch_size))

    def concatenate(self, document: DecodedDocument, codes: Iterator[Int[np.ndarray, " image_length"]]) -> list[int]:
        """The ids of a document, `<break>` between its segments, with the next ids of `codes` for its images."""
        ids: list[int] = []
        for number, segment in enumerate(document.segments):
            if number:
                ids.append(self.vocabulary.break_)
            ids.extend(next(codes).tolist() if segment is None else segment)
        return ids
