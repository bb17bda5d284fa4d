"""A user's encoder: which words a text has, by their hashes, and the mean color of an image."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from cm3leon_jax.config import Config
from cm3leon_jax.encoders.base import Encoder, dropped, l2_normalize
from cm3leon_jax.encoders.config import ENCODERS, EncoderConfig


@dataclass(frozen=True)
class HashedWordsConfig(EncoderConfig):
    """The number of buckets for words."""

    implementation: ClassVar[str] = f"{__name__}:HashedWords"
    trainer: ClassVar[str] = f"{__name__}:HashedWordsTrainer"

    family: str = "hashed_words"
    num_buckets: int = 64


class HashedWords(Encoder):
    """Texts are compared with texts, and images with images."""

    family = "hashed_words"
    is_joint = False

    def __init__(self, settings: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> None:
        super().__init__(settings, arrays)
        self.num_buckets = settings["num_buckets"]
        self.dim = self.num_buckets + 3

    def encode_texts(
        self, texts: Sequence[str], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Counts of hashed words."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            words = np.array([zlib.crc32(word.encode()) % self.num_buckets for word in text.split()], int)
            if dropout and keys is not None:
                words = words[~dropped(len(words), dropout, int(keys[row]))]
            np.add.at(vectors[row], words, 1)
        return l2_normalize(vectors)

    def encode_images(
        self, images: UInt8[np.ndarray, "n R R C"], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Mean colors."""
        vectors = np.zeros((len(images), self.dim), np.float32)
        vectors[:, -3:] = images.mean(axis=(1, 2)) - 128
        return l2_normalize(vectors)


class HashedWordsTrainer:
    """Has nothing to learn; `record` names what else of the config the encoder depends on."""

    is_distributed = False

    def __init__(self, config: Config) -> None:
        self._config, self.record = config, {}

    def train(self, workdir: Path, record: dict[str, Any]) -> tuple[Encoder, None]:
        """The encoder, and no pairs of a text and an image to measure it on."""
        return HashedWords({"num_buckets": self._config.encoder.num_buckets}), None


ENCODERS.add("hashed_words", f"{__name__}:HashedWordsConfig")
