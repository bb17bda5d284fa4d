"""The values of the encoder of texts and images, and of its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cm3leon_jax.config_part import AT_RESUME, Layers, Part, one_of, require
from cm3leon_jax.paths import LocalPath
from cm3leon_jax.ranges import Decay, NonNegative, NonNegativeInt, Positive, PositiveInt, Range, Seed


@dataclass(frozen=True)
class EncoderConfig(Part):
    """What makes vectors of texts and images, by which neighbors are found (CLIP ViT-B/32 in the paper).

    The shapes are those of an encoder that is made here; one that was imported keeps its own.
    """

    path: LocalPath = "{workdir}/encoder"
    # "clip": two transformers into one space (arXiv 2103.00020), trained on the mixture or imported. "tfidf": word
    # statistics and a thumbnail, for a corpus where nothing is trained yet; of the fields below it has `embedding_dim`
    # and `resolution`, the thumbnail's side.
    kind: str = "clip"
    embedding_dim: PositiveInt = 512
    resolution: PositiveInt = 224
    patch_size: PositiveInt = 32
    image_layers: Layers = 12
    image_dim: PositiveInt = 768
    image_heads: PositiveInt = 12
    max_text_tokens: Annotated[int, Range(at_least=3)] = 77
    text_layers: Layers = 12
    text_dim: PositiveInt = 512
    text_heads: PositiveInt = 8
    # "gelu", or the cheaper "quick_gelu" of the first published weights.
    activation: str = "quick_gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("encoder", self, "kind", "clip", "tfidf")
        one_of("encoder", self, "activation", "gelu", "quick_gelu")
        if self.kind == "tfidf":
            require(
                3 * self.resolution**2 < self.embedding_dim,
                f"encoder.resolution {self.resolution} makes a thumbnail of {3 * self.resolution**2} colors, which "
                f"leaves no room for text in encoder.embedding_dim {self.embedding_dim}",
            )
            return
        require(
            self.resolution % self.patch_size == 0,
            f"encoder.resolution {self.resolution} is not a multiple of encoder.patch_size {self.patch_size}",
        )
        for tower in ("image", "text"):
            dim, heads = getattr(self, f"{tower}_dim"), getattr(self, f"{tower}_heads")
            require(dim % heads == 0, f"encoder.{tower}_dim {dim} does not divide into encoder.{tower}_heads {heads}")


@dataclass(frozen=True)
class EncoderTrainingConfig(Part):
    """How the encoder learns from the mixture's captioned images (arXiv 2103.00020, section 2 and table 19)."""

    # Pairs of a text and an image, drawn from the mixture's training split; 0 means all.
    num_pairs: NonNegativeInt = 1_000_000
    num_steps: Annotated[PositiveInt, AT_RESUME] = 10_000
    # Every pair of a batch is held against every other, over all devices.
    batch_size: Annotated[int, Range(at_least=2)] = 4096
    peak_learning_rate: NonNegative = 5e-4
    warmup_steps: NonNegativeInt = 500
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
            f"encoder_training.lowest_temperature is {self.lowest_temperature}: at most initial_temperature, which "
            f"is {self.initial_temperature}",
        )
