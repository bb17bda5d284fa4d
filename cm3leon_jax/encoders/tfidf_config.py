"""The values of the word statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cm3leon_jax.config_part import require
from cm3leon_jax.encoders.config import EncoderConfig
from cm3leon_jax.ranges import PositiveInt


@dataclass(frozen=True)
class TfidfConfig(EncoderConfig):
    """TF-IDF of words, and a thumbnail of `resolution` pixels: for a corpus where nothing is trained yet."""

    implementation: ClassVar[str] = "cm3leon_jax.encoders.tfidf:TfidfEncoder"
    trainer: ClassVar[str] = "cm3leon_jax.encoders.tfidf:TfidfTrainer"

    family: str = "tfidf"
    resolution: PositiveInt = 8
    # Of the thumbnail's colors and the words together.
    embedding_dim: PositiveInt = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            3 * self.resolution**2 < self.embedding_dim,
            f"encoder.resolution {self.resolution} makes a thumbnail of {3 * self.resolution**2} colors, which "
            f"leaves no room for text in encoder.embedding_dim {self.embedding_dim}",
        )
