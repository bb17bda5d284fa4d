"""The values of CLIP and of its training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from cm3leon_jax.config_part import AT_RESUME, Layers, require
from cm3leon_jax.encoders.config import EncoderConfig, EncoderTrainingConfig
from cm3leon_jax.ranges import Decay, Fraction, NonNegative, NonNegativeInt, OneOf, Positive, PositiveInt, Range, Seed


@dataclass(frozen=True)
class ClipTrainingConfig(EncoderTrainingConfig):
    """How CLIP is trained (arXiv 2103.00020, section 2 and table 19)."""

    num_steps: Annotated[PositiveInt, AT_RESUME] = 10_000
    # Every pair of a batch is compared with every other, over all devices.
    batch_size: Annotated[int, Range(at_least=2)] = 4096
    peak_learning_rate: NonNegative = 5e-4
    warmup_steps: NonNegativeInt = 500
    final_learning_rate_fraction: Fraction = 0.0
    # The last part of the steps, over which the rate falls; before, it stays at its peak.
    decay_fraction: Fraction = 1.0
    beta1: Decay = 0.9
    beta2: Decay = 0.98
    epsilon: Positive = 1e-6
    weight_decay: NonNegative = 0.2
    initial_temperature: Positive = 0.07
    lowest_temperature: Positive = 0.01
    log_every: Annotated[PositiveInt, AT_RESUME] = 10
    save_every: Annotated[PositiveInt, AT_RESUME] = 1000
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.lowest_temperature <= self.initial_temperature,
            f"encoder.training.lowest_temperature is {self.lowest_temperature}: at most initial_temperature, which "
            f"is {self.initial_temperature}",
        )


@dataclass(frozen=True)
class ClipConfig(EncoderConfig):
    """The shapes of a CLIP that is trained here (the paper's: ViT-B/32); one that was imported keeps its own."""

    implementation: ClassVar[str] = "cm3leon_jax.encoders.clip.encoder:ClipEncoder"
    trainer: ClassVar[str] = "cm3leon_jax.encoders.clip.training:ClipTrainer"
    flops: ClassVar[str] = "cm3leon_jax.encoders.clip.flops:clip_flops"

    embedding_dim: PositiveInt = 512
    patch_size: PositiveInt = 32
    image_layers: Layers = 12
    image_dim: PositiveInt = 768
    image_heads: PositiveInt = 12
    max_text_tokens: Annotated[int, Range(at_least=3)] = 77
    text_layers: Layers = 12
    text_dim: PositiveInt = 512
    text_heads: PositiveInt = 8
    # "gelu", or the cheaper "quick_gelu" of the first published weights.
    activation: Annotated[str, OneOf("gelu", "quick_gelu")] = "quick_gelu"
    training: ClipTrainingConfig = field(default_factory=ClipTrainingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.resolution % self.patch_size == 0,
            f"encoder.resolution {self.resolution} is not a multiple of encoder.patch_size {self.patch_size}",
        )
        for tower in ("image", "text"):
            dim, heads = getattr(self, f"{tower}_dim"), getattr(self, f"{tower}_heads")
            require(dim % heads == 0, f"encoder.{tower}_dim {dim} does not divide into encoder.{tower}_heads {heads}")
