"""What every image tokenizer's config has, and the families by name; a family's own values are in its folder."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from cm3leon_jax.config_part import AT_RESUME, Names, Part, require
from cm3leon_jax.paths import LocalPath
from cm3leon_jax.ranges import NonNegativeInt, PositiveInt, Range
from cm3leon_jax.registry import Registry

# Maps `config.image_tokenizer.family` to the family's config class.
IMAGE_TOKENIZERS = Registry(
    "config.image_tokenizer.family", {"vqgan": "cm3leon_jax.image_tokenizers.vqgan.config:VQGANConfig"}
)


@dataclass(frozen=True)
class ImageTokenizerTrainingConfig(Part):
    """What every training of an image tokenizer has."""

    # Images sampled from the mixture's training split, kept as one memory-mapped file; 0 means all.
    num_images: NonNegativeInt = 1_000_000


@dataclass(frozen=True)
class ImageTokenizerConfig(Part, abc.ABC):
    """The sizes of an image tokenizer of any family, which is all that the rest of the package reads of it.

    The class of a family derives from this, and names a subclass of `ImageTokenizer`.
    """

    families: ClassVar[Registry] = IMAGE_TOKENIZERS
    # "module:attribute" of the `ImageTokenizer`, and of what trains it (an `ImageTokenizerTrainer`).
    implementation: ClassVar[str]
    trainer: ClassVar[str] = "cm3leon_jax.image_tokenizers.training:NothingToLearn"
    # "module:attribute" of a function of the config: FLOPs of encoding one image, and of the training, for
    # `cm3leon plan`; "" where nobody has counted them.
    flops: ClassVar[str] = ""
    # Fields that are stored only where they differ from their default: adding one changes no fingerprint.
    omitted_defaults: ClassVar[tuple[str, ...]] = ()

    family: str = "vqgan"
    path: Annotated[LocalPath, AT_RESUME] = "{workdir}/image_tokenizer"
    resolution: PositiveInt = 256
    in_channels: Annotated[int, Range(at_least=1, at_most=3)] = 3
    codebook_size: Names = 8192
    training: Annotated[ImageTokenizerTrainingConfig, AT_RESUME] = field(default_factory=ImageTokenizerTrainingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.in_channels in (1, 3), f"image_tokenizer.in_channels is {self.in_channels}: 1 (gray) or 3 (RGB)")

    @property
    @abc.abstractmethod
    def grid(self) -> int:
        """Codes along one side of an image."""

    @property
    def image_length(self) -> int:
        return self.grid**2
