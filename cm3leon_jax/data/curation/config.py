"""Which documents of the sources a corpus takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from cm3leon_jax.errors import UserError
from cm3leon_jax.paths import OptionalPath
from cm3leon_jax.ranges import Finite, OneOf, PositiveInt, Range, first_fault

_Bits = Annotated[int, Range(at_least=0, at_most=10)]
_Cosine = Annotated[float, Range(at_least=-1, at_most=1)]
_Ratio = Annotated[float, Range(at_least=1)]


@dataclass(frozen=True)
class CurationConfig:
    """What a document must be to be taken, by itself; whatever is None or empty asks for nothing."""

    # Pixels of the shorter side of each image file, and how many times it the longer side may be.
    min_side: PositiveInt | None = None
    max_aspect_ratio: _Ratio | None = None
    # Characters of a document's text.
    min_text_length: PositiveInt | None = None
    max_text_length: PositiveInt | None = None
    # Least cosine of the vectors of a caption and of each of its images, by the run's encoder (config.encoder). Only
    # `prepare` asks it, of documents of a caption and images. LAION-400M has 0.3, by the CLIP ViT-B/32 of OpenAI.
    min_clip_score: _Cosine | None = None
    # Bounds of a row's own values by their column, such as at_most=dict(pwatermark=0.5), at_least=dict(aesthetic=5.0);
    # a row without such a number is not taken. "a.b" names a value of a value.
    at_least: Mapping[str, Finite] = field(default_factory=dict)
    at_most: Mapping[str, Finite] = field(default_factory=dict)
    # A text file with a SHA-256 of an image file, or an address of one (the column `url`), on each line: none is taken.
    blocklist: OptionalPath = ""

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.corpus.curation.{fault}")


@dataclass(frozen=True)
class DuplicatesConfig:
    """Which of several documents that are alike are dropped; takes a pass over all images before they are encoded."""

    # Of documents with the same "images", or of "documents" whose texts are the same too, the first is kept: held-out
    # ones before others, tasks in the order of their names. With "images", one of several captions of an image remains.
    drop: Annotated[str, OneOf("none", "documents", "images")] = "none"
    # Whether training documents are dropped that have an image of a held-out document.
    drop_held_out: bool = False
    # Images are the same if their perceptual hashes, 64 bits of what the image tokenizer sees, differ in at most so
    # many bits; None: if their files have the same bytes. Resizing or encoding an image again changes few bits.
    max_distance: _Bits | None = None

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.corpus.duplicates.{fault}")
        if self.max_distance is not None and not self.any:
            raise UserError("config.corpus.duplicates.max_distance compares nothing: set drop or drop_held_out, too")

    @property
    def any(self) -> bool:
        """Whether anything may be dropped."""
        return self.drop != "none" or self.drop_held_out
