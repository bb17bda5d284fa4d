"""What every encoder's config has, and the families by name; a family's own values are in its folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cm3leon_jax.config_part import Part
from cm3leon_jax.paths import LocalPath
from cm3leon_jax.ranges import NonNegativeInt, PositiveInt
from cm3leon_jax.registry import Registry

# Maps `config.encoder.family` to the family's config class.
ENCODERS = Registry(
    "config.encoder.family",
    {
        # Two transformers into one space (arXiv 2103.00020), trained on the mixture or imported.
        "clip": "cm3leon_jax.encoders.clip.config:ClipConfig",
        # The same with a sigmoid loss and without a class token (arXiv 2303.15343), imported.
        "siglip": "cm3leon_jax.encoders.siglip.config:SiglipConfig",
        "tfidf": "cm3leon_jax.encoders.tfidf_config:TfidfConfig",
    },
)


@dataclass(frozen=True)
class EncoderTrainingConfig(Part):
    """What every training of an encoder has."""

    # Pairs of a text and an image, sampled from the mixture's training split; 0 means all.
    num_pairs: NonNegativeInt = 1_000_000


@dataclass(frozen=True)
class EncoderConfig(Part):
    """What makes vectors of texts and images, by which neighbors are found.

    The class of a family derives from this, and names a class that fulfils `Encoder`.
    """

    families: ClassVar[Registry] = ENCODERS
    # "module:attribute" of the `Encoder`, and of what makes it from a corpus (an `EncoderTrainer`); "" where an encoder
    # can only be imported.
    implementation: ClassVar[str]
    trainer: ClassVar[str] = ""
    # "module:attribute" of a function of the config: FLOPs of encoding a text and an image, and of the training, for
    # `cm3leon plan`; "" where nobody has counted them.
    flops: ClassVar[str] = ""

    family: str = "clip"
    path: LocalPath = "{workdir}/encoder"
    # Side of the images that it is made from, in pixels.
    resolution: PositiveInt = 224
    training: EncoderTrainingConfig = field(default_factory=EncoderTrainingConfig)
