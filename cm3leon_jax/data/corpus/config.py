"""What is prepared, from where, to where, and the text side of the id space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from cm3leon_jax.config_part import AT_RESUME, Names, Part
from cm3leon_jax.data.curation.config import CurationConfig, DuplicatesConfig
from cm3leon_jax.data.sources.config import AnnotationsConfig, FolderConfig, InterleavedConfig, RowsConfig
from cm3leon_jax.paths import IsPath, LocalPath
from cm3leon_jax.ranges import Fraction, NonNegativeInt, PositiveInt, Range
from cm3leon_jax.squaring import Squaring


@dataclass(frozen=True)
class CorpusConfig(Part):
    """What is prepared, from where, to where."""

    path: LocalPath = "{workdir}/corpus"
    # A registered seqio Task or Mixture, and the modules whose import registers it; or `KIND:LOCATION` of
    # `data/sources/registry.py`: `folder:PATH`, `tfds:BUILDER`, `llava:PATH`, ...
    mixture: Annotated[str, IsPath(prefix="folder:")] = ""
    modules: tuple[str, ...] = ()
    train_split: str = "train"
    held_out_split: str = "validation"
    # Examples of a task and split that make a shard, so that each can be written without those before it: by several
    # processes, or after an interruption. With captioned images of 1,024 codes these are about 140 million tokens.
    examples_per_shard: PositiveInt = 1 << 17
    # Images encoded in one call of the image tokenizer.
    encode_batch_size: PositiveInt = 128
    # Most tokens of a part of an interleaved document, which is cut between its segments, never in an image. None: as
    # many as a row of the config holds, or, where rows cut anywhere (config.batch.packing), all of it.
    max_document_length: PositiveInt | None = None
    # Original images kept with each split, to be looked at.
    num_sample_images: NonNegativeInt = 32
    # Most of a task's documents that may be skipped because something is odd about them, as a fraction of all.
    max_skipped_fraction: Fraction = 0.1
    # How a folder is read, where the mixture is one.
    folder: FolderConfig = field(default_factory=FolderConfig)
    # Which values of a row are its image and its captions, where the mixture is of rows.
    rows: RowsConfig = field(default_factory=RowsConfig)
    # How images become squares.
    squaring: Squaring = field(default_factory=Squaring)
    # Which documents are taken, and which of several that are alike.
    curation: CurationConfig = field(default_factory=CurationConfig)
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    # How instructions as downloaded are read, where the mixture is `KIND:PATH` of such.
    annotations: AnnotationsConfig = field(default_factory=AnnotationsConfig)
    # How interleaved documents as downloaded are read, where the mixture is `KIND:PATH` of such.
    interleaved: InterleavedConfig = field(default_factory=InterleavedConfig)


@dataclass(frozen=True)
class VocabularyConfig(Part):
    """The text side of the id space; the number of image codes is the image tokenizer's."""

    path: Annotated[LocalPath, AT_RESUME] = "{workdir}/vocabulary"
    num_text_tokens: Annotated[int, Range(at_least=256, at_most=1 << 22)] = 56320
    num_masks: Names = 512
    # Documents of the training split from which the BPE is learned.
    num_documents: Annotated[PositiveInt, AT_RESUME] = 1_000_000
