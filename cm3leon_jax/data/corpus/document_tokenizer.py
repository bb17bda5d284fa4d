"""Makes ids of documents, with the codes of any image tokenizer."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from cm3leon_jax.data.corpus.instructions import StoredInstruction, to_be_stored
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.templates.tokenized import TokenizedTemplate, load_template
from cm3leon_jax.documents import TOO_FEW_IMAGES, Document, ImageSegment, TextSegment
from cm3leon_jax.images import UnreadableImage, decode_image
from cm3leon_jax.squaring import Squaring
from cm3leon_jax.vocabulary import Vocabulary

# Reasons that are named where an interleaved document has too few images.
_NUM_NAMED = 3


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
    """A document with its text as ids and its images as pixels; among the segments, None stands for an image.

    Of an instruction, the segments are the stored fields of its template (templates.tokenized).
    """

    segments: tuple[list[int] | None, ...]
    images: tuple[UInt8[np.ndarray, "R R C"], ...]
    template: str = ""
    # Whether it may be cut between segments.
    is_interleaved: bool = False
    # Why images and texts were left out of it.
    omitted: tuple[str, ...] = ()
    # As in `Document`.
    group: int = -1


@dataclass(frozen=True)
class DocumentTokenizer:
    """Makes ids of documents."""

    vocabulary: Vocabulary
    image_tokenizer: ImageEncoder
    batch_size: int
    # Most tokens of a part of an interleaved document; None: it stays whole.
    max_length: int | None = None
    squaring: Squaring = field(default_factory=Squaring)

    @property
    def image_segment_length(self) -> int:
        """Ids of an image in a document."""
        return self.vocabulary.image_segment_length(self.image_tokenizer.config.image_length)

    def decode(self, document: Document | SkippedExample) -> DecodedDocument | SkippedExample:
        """Decodes the images and tokenizes the text; the codes of images come later, many at a time."""
        if isinstance(document, SkippedExample):
            return document
        config = self.image_tokenizer.config
        images, kept, omitted = [], [], list(document.omitted)
        for number, segment in enumerate(document.segments):
            if isinstance(segment, ImageSegment):
                try:
                    pixels = decode_image(segment.encoded, config.resolution, config.in_channels, self.squaring)
                    images.append(pixels)
                except UnreadableImage as error:
                    reason = f"unreadable image: segment {number}: {error}"
                    if document.min_images is None:
                        return SkippedExample(reason)
                    omitted.append(reason)
                    continue
            kept.append(segment)
        if document.min_images is not None:
            return self._interleaved(kept, tuple(images), tuple(omitted), document.min_images)
        if document.template:
            fields = self._fields(document, self.template(document.template))
            return (
                fields
                if isinstance(fields, SkippedExample)
                else DecodedDocument(fields, tuple(images), document.template)
            )
        segments = tuple(
            None if isinstance(segment, ImageSegment) else self.vocabulary.encode_text(segment.text)
            for segment in document.segments
        )
        if not any(segment is None or segment for segment in segments):
            return SkippedExample("empty document")
        return DecodedDocument(segments, tuple(images), group=document.group)

    def _interleaved(
        self,
        segments: list[TextSegment | ImageSegment],
        images: tuple[UInt8[np.ndarray, "R R C"], ...],
        omitted: tuple[str, ...],
        min_images: int,
    ) -> DecodedDocument | SkippedExample:
        if len(images) < min_images:
            return SkippedExample(f"{TOO_FEW_IMAGES}: {'; '.join(omitted[:_NUM_NAMED])}", is_fault=False)
        found: list[list[int] | None] = []
        # Texts that an image was left out between become one.
        for is_image, group in itertools.groupby(segments, lambda segment: isinstance(segment, ImageSegment)):
            if is_image:
                found.extend(None for _ in group)
                continue
            text = "\n".join(segment.text for segment in group if isinstance(segment, TextSegment))
            longest = self.max_length or sys.maxsize
            found.extend(piece for piece in self.vocabulary.encode_pieces(text, longest) if piece)
        if not found:
            return SkippedExample("empty document")
        return DecodedDocument(tuple(found), images, is_interleaved=True, omitted=omitted)

    def parts(self, document: DecodedDocument) -> list[DecodedDocument]:
        """A document, or the parts of an interleaved one, as many segments each as fit into `max_length` tokens.

        They follow from the document alone.
        """
        if not document.is_interleaved or self.max_length is None or self.length(document) <= self.max_length:
            return [document]
        images = iter(document.images)
        parts = list[DecodedDocument]()
        for segments in cut(document.segments, self.max_length, self.image_segment_length):
            own = tuple(next(images) for segment in segments if segment is None)
            parts.append(DecodedDocument(tuple(segments), own, is_interleaved=True))
        return parts

    def text(self, document: DecodedDocument) -> str:
        """The text of a document without a template."""
        return "\n".join(self.vocabulary.decode_text(each) for each in document.segments if each is not None)

    def template(self, name: str) -> TokenizedTemplate:
        """A template of the registry in the ids of the vocabulary."""
        return load_template(name, self.vocabulary)

    def _fields(self, document: Document, template: TokenizedTemplate) -> tuple[list[int] | None, ...] | SkippedExample:
        """The fields of an instruction as they are stored: ids of texts, None for images."""
        names = template.template.fields_of(len(document.segments))
        if names is None:
            needed = ", ".join(template.template.fields)
            return SkippedExample(
                f"not the fields of its template: {len(document.segments)} segments, {template.name!r} has {needed}"
            )
        by_name: dict[tuple[str, int], TextSegment | ImageSegment] = {}
        for key, segment in zip(names, document.segments, strict=True):
            if isinstance(segment, ImageSegment) != (key[0] in template.template.images):
                return SkippedExample(
                    f"not the fields of its template: {key[0]} of {template.name!r} is of another kind"
                )
            if isinstance(segment, TextSegment) and not segment.text.strip():
                return SkippedExample(f"empty field: {key[0]}")
            by_name[key] = segment
        num_turns = max((turn for _, turn in names), default=0) + 1
        return tuple(
            template.encode(field, segment.text)
            if isinstance(segment := by_name[field.name, turn], TextSegment)
            else None
            for field, turn in template.template.stored(num_turns)
        )

    def length(self, document: DecodedDocument) -> int:
        """Tokens of a document; of an instruction in its first wording."""
        lengths = [self.image_segment_length if segment is None else len(segment) for segment in document.segments]
        if document.template:
            return self.template(document.template).length(lengths)
        return sum(lengths) + len(lengths) - 1

    def encode(self, images: list[UInt8[np.ndarray, "R R C"]]) -> Int[np.ndarray, "n m"]:
        """Ids of images."""
        return self.vocabulary.encode_image(self.image_tokenizer.encode(np.stack(images), self.batch_size))

    def instruction(self, document: DecodedDocument, codes: Iterator[Int[np.ndarray, " m"]]) -> StoredInstruction:
        """The tokens of an instruction, with the next ids of `codes` for its images."""
        values = [next(codes) if segment is None else np.array(segment, np.int32) for segment in document.segments]
        return to_be_stored(self.template(document.template), values)

    def concatenate(self, document: DecodedDocument, codes: Iterator[Int[np.ndarray, " m"]]) -> list[int]:
        """The ids of a document, `<break>` between its segments, with the next ids of `codes` for its images."""
        ids: list[int] = []
        for number, segment in enumerate(document.segments):
            if number:
                ids.append(self.vocabulary.break_)
            ids.extend(next(codes).tolist() if segment is None else segment)
        return ids


def cut(segments: Sequence[list[int] | None], longest: int, image_segment_length: int) -> list[list[list[int] | None]]:
    """Cuts a document between segments, so that each part has at most `longest` tokens with `<break>` between them.

    Args:
      segments: the ids of texts, None for images; none of them is longer than `longest`.
    """
    parts: list[list[list[int] | None]] = []
    room = 0
    for segment in segments:
        length = image_segment_length if segment is None else len(segment)
        if not parts or length + 1 > room:
            parts.append([])
            # A part has one `<break>` fewer than segments.
            room = longest + 1
        parts[-1].append(segment)
        room -= length + 1
    return parts
