"""The config of folders of captioned images."""

from __future__ import annotations

from dataclasses import dataclass

from cm3leon_jax.errors import UserError
from cm3leon_jax.ranges import Decay, first_fault


@dataclass(frozen=True)
class FolderConfig:
    """How a folder of captioned images is read (`folder:PATH` as `config.corpus.mixture`)."""

    # Fraction of the images in "validation", chosen by a hash of the file name; a folder with splits of its own
    # (train/ and validation/) keeps them.
    held_out_fraction: Decay = 0.01
    # Which lines of a caption file are the caption: "all", "first", "each" (every line is a caption of its own), or the
    # line that begins with this text, without the text: "de.utf8=" finds the German one of "de.utf8=Ein Hase.".
    caption_line: str = "all"
    # Columns of metadata.jsonl, .csv and .parquet. Where none is named: "text", "caption", "texts" or "captions", the
    # first of them that is there; "file_name", or the only column that ends so.
    caption_column: str = ""
    image_column: str = ""
    # Whether a corpus is refused when images of the same name and size have other times of change, as in a copy.
    compare_times: bool = True

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.corpus.folder.{fault}")
        if not self.caption_line:
            raise UserError("config.corpus.folder.caption_line is empty: 'all', 'first', 'each' or how the line begins")
