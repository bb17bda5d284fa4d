"""The config of folders and rows of captioned images, of instructions, and of interleaved documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from cm3leon_jax.errors import UserError
from cm3leon_jax.ranges import Decay, NonNegativeInt, OneOf, PositiveInt, Range, first_fault


@dataclass(frozen=True)
class FolderConfig:
    """How a folder of captioned images is read (`folder:PATH` as `config.corpus.mixture`)."""

    # Fraction of the images in "validation", chosen by a hash of the file name; a folder with splits of its own
    # (train/ and validation/) keeps them.
    held_out_fraction: Decay = 0.01
    # Which lines of a caption file are the caption: "all", "first", "each" (every line is a caption of its own), or the
    # line that begins with this text, without the text: "de.utf8=" finds the German one of "de.utf8=Ein Hase.".
    caption_line: str = "all"
    # Whether a corpus is refused when images of the same name and size have other times of change, as in a copy.
    compare_times: bool = True

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.corpus.folder.{fault}")
        if not self.caption_line:
            raise UserError("config.corpus.folder.caption_line is empty: 'all', 'first', 'each' or how the line begins")


@dataclass(frozen=True)
class RowsConfig:
    """Which of the named values of a row are its image, its captions and their languages.

    A row is one of a parquet or Arrow file or of JSON lines, one of a folder's metadata, or the files of one key in a
    WebDataset tar with the values of its JSON. "a.b" names the value b of the value a, which may be JSON in a string.
    """

    # Where none is named: the only column of images, or one that is called so.
    image_column: str = ""
    # Where none is named: "text", "caption", "texts" or "captions", the first of them that is there, in any case.
    caption_column: str = ""
    # Which captions of a row make documents: each, the first, the longest, or one by a hash of the row's name; with
    # "sampled" each does, and every epoch of the training takes one of them.
    captions: Annotated[str, OneOf("all", "first", "longest", "by_hash", "sampled")] = "all"
    # The language of a row, or a list with that of each caption; and those that are taken.
    language_column: str = ""
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.corpus.rows.{fault}")
        if bool(self.language_column) != bool(self.languages):
            raise UserError("config.corpus.rows.languages and language_column go together: set both, or none")

    @property
    def is_sampled(self) -> bool:
        """Whether an epoch takes one of the documents of a row."""
        return self.captions == "sampled"


@dataclass(frozen=True)
class AnnotationsConfig:
    """How instructions as downloaded are read, such as `llava:PATH`; the held-out fraction is that of folders."""

    # Templates that take the role of those that a reader gives, with the same fields: {"caption": "text_to_image"}.
    templates: Mapping[str, str] = field(default_factory=dict)
    # `config.image_tokenizer.resolution`, where boxes or structure maps are made for images as it sees them.
    resolution: PositiveInt | None = None
    # The structure maps of each image of `structures:PATH`.
    structures: tuple[Annotated[str, OneOf("edges", "soft_edges", "scribble", "blur")], ...] = ("edges", "scribble")
    # Most objects of an image; the largest are taken.
    max_objects: PositiveInt = 16

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.corpus.annotations.{fault}")


@dataclass(frozen=True)
class InterleavedConfig:
    """How interleaved documents as downloaded are read, such as `obelics:PATH`; splits are those of folders."""

    # The folder of the images that documents name by their URL or file name (docs/interleaved_data.md says in which
    # forms); empty: images/ in the folder of the documents, or that folder itself where there is none.
    images: str = ""
    # Documents with fewer or more images, or fewer characters of text, are skipped; missing images do not count.
    min_images: NonNegativeInt = 1
    max_images: PositiveInt | None = None
    min_characters: NonNegativeInt = 1
    # Whether an image that a document had before, and a text that comes twice in a row, are left out.
    drop_repeated: bool = True
    # Of mmc4: whether images come before or after the sentence that they belong to; those that are less similar to it
    # (`matched_sim`) are left out.
    image_position: Annotated[str, OneOf("before", "after")] = "after"
    min_similarity: Annotated[float, Range(at_least=-1, at_most=1)] | None = None

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.corpus.interleaved.{fault}")
