"""The values of a VQGAN and of its training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from cm3leon_jax.config_part import AT_RESUME, require
from cm3leon_jax.image_tokenizers.config import ImageTokenizerConfig, ImageTokenizerTrainingConfig
from cm3leon_jax.paths import OptionalPath
from cm3leon_jax.ranges import Decay, Fraction, NonNegative, NonNegativeInt, OneOf, PositiveInt, Range, Seed


@dataclass(frozen=True)
class VQGANTrainingConfig(ImageTokenizerTrainingConfig):
    """How the VQGAN is trained (Esser et al., arXiv 2012.09841; Gafni et al., arXiv 2203.13131)."""

    num_steps: Annotated[PositiveInt, AT_RESUME] = 800_000
    batch_size: PositiveInt = 192
    peak_learning_rate: NonNegative = 4.5e-6
    warmup_steps: NonNegativeInt = 0
    # The last step's rate, as a fraction of the peak; the fall after the warm-up is linear.
    final_learning_rate_fraction: Fraction = 1.0
    # The last part of the steps, over which the rate falls; before, it stays at its peak.
    decay_fraction: Fraction = 1.0
    beta1: Decay = 0.5
    beta2: Decay = 0.9
    # "gradient" moves the codebook by its own loss, "ema" by a running mean of what falls on each code.
    codebook_update: Annotated[str, OneOf("gradient", "ema")] = "gradient"
    ema_decay: Decay = 0.99
    codebook_weight: NonNegative = 1.0
    commitment_weight: NonNegative = 0.25
    # A code that was used less often than this (running mean, uses per step) is replaced by an encoder output.
    dead_code_threshold: NonNegative = 0.01
    # Steps between two such replacements; 0: never.
    dead_code_every: NonNegativeInt = 100
    # 0: no such loss. LPIPS needs weights: a safetensors file of VGG16 and the LPIPS linear layers.
    perceptual_weight: NonNegative = 0.0
    perceptual_weights_file: OptionalPath = ""
    discriminator_weight: NonNegative = 0.8
    discriminator_start: NonNegativeInt = 250_000
    discriminator_channels: PositiveInt = 64
    discriminator_layers: Annotated[int, Range(at_least=1, at_most=16)] = 3
    # Random horizontal flips; wrong for images of text or digits.
    flip: bool = False
    log_every: Annotated[PositiveInt, AT_RESUME] = 100
    save_every: Annotated[PositiveInt, AT_RESUME] = 5000
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.perceptual_weight == 0 or bool(self.perceptual_weights_file),
            "image_tokenizer.training.perceptual_weight is set but perceptual_weights_file is empty: "
            "name a safetensors file, or set the weight to 0",
        )


@dataclass(frozen=True)
class VQGANConfig(ImageTokenizerConfig):
    """The VQGAN: pixels <-> codes (the paper's: 256 pixels, factor 8, 1,024 codes out of 8,192)."""

    implementation: ClassVar[str] = "cm3leon_jax.image_tokenizers.vqgan.tokenizer:VQGANTokenizer"
    trainer: ClassVar[str] = "cm3leon_jax.image_tokenizers.vqgan.training:VQGANTrainer"
    flops: ClassVar[str] = "cm3leon_jax.image_tokenizers.vqgan.flops:vqgan_flops"
    omitted_defaults: ClassVar[tuple[str, ...]] = ("encoder",)

    base_channels: PositiveInt = 128
    # One entry per level; each level but the last halves the side.
    channel_multipliers: tuple[PositiveInt, ...] = (1, 1, 2, 4)
    num_res_blocks: Annotated[int, Range(at_least=0, at_most=10_000)] = 2
    # Sides of the feature map at which residual blocks are followed by attention.
    attention_resolutions: tuple[PositiveInt, ...] = ()
    # The two blocks and the attention at the lowest resolution. Without them a code describes its surroundings alone,
    # which a small transformer on a small corpus learns far sooner than codes that each depend on the whole image.
    mid_block: bool = True
    # "patch": each code sees its own patch of `factor` x `factor` pixels alone, so that a change of a part of an image
    # changes the codes of that part alone. Blocks and attention are then the decoder's only.
    encoder: Annotated[str, OneOf("convolutional", "patch")] = "convolutional"
    # Most groups of a group normalization; small widths want fewer, since a group of one channel loses its mean.
    norm_groups: PositiveInt = 32
    latent_channels: PositiveInt = 256
    embedding_dim: PositiveInt = 256
    training: VQGANTrainingConfig = field(default_factory=VQGANTrainingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.channel_multipliers)
        require(1 <= levels <= 16, f"image_tokenizer.channel_multipliers has {levels} entries: one per level, 1 to 16")
        require(
            self.resolution % self.factor == 0,
            f"image_tokenizer.resolution {self.resolution} is not a multiple of the factor {self.factor}, "
            f"which follows from {levels} channel_multipliers",
        )

    @property
    def factor(self) -> int:
        """Pixels a code covers, along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        return self.resolution // self.factor
