"""What the package needs of an encoder of any family: unit vectors of texts and images, whose products compare them.

ENCODER/config.json          its family, settings, fingerprint, and what it was trained on
ENCODER/model.safetensors    its arrays by name
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NotRequired

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from typing_extensions import TypedDict

from cm3leon_jax import counter_random, weights
from cm3leon_jax.encoders.config import ENCODERS
from cm3leon_jax.errors import UserError
from cm3leon_jax.records import read_record
from cm3leon_jax.registry import load_attribute
from cm3leon_jax.weights import CONFIG_FILE, WEIGHTS_FILE

_FIX = "delete the folder and make it again"


class Encoder(abc.ABC):
    """Encodes texts and images; vectors have unit norm, or are zero where nothing is said (an empty text)."""

    # The name in the registry.
    family: ClassVar[str]
    # Whether a text's vector can be compared with an image's.
    is_joint: ClassVar[bool] = True
    # Width of a vector.
    dim: int

    def __init__(self, settings: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> None:
        """Takes what decides the vectors: JSON-like settings, and arrays by name."""
        self.settings = dict(settings)
        self.weights = {name: np.asarray(value) for name, value in sorted((arrays or {}).items())}
        # Equal for equal encoders; stored with everything that was found by its vectors.
        self.fingerprint = weights.fingerprint([self.family, self.settings], self.weights)

    @abc.abstractmethod
    def encode_texts(
        self, texts: Sequence[str], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Vectors of texts, each without a fraction of its tokens that `keys` choose, one key per text."""

    @abc.abstractmethod
    def encode_images(
        self, images: UInt8[np.ndarray, "n R R C"], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """Vectors of images of any side, each without a fraction of its patches that `keys` choose."""

    def save(self, path: str | Path, training: dict[str, Any] | None = None) -> None:
        """Writes the folder, the config last; `training` says what it was trained on."""
        record = {"family": self.family, "settings": self.settings, "fingerprint": self.fingerprint}
        weights.save(Path(path), self.weights, record | {"training": training})

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path) -> Encoder:
        """The encoder that `save` wrote; an error of its own for settings that are none of it is enough."""
        return cls(settings, arrays)


def load_encoder(path: str | Path) -> Encoder:
    """Reads the folder that `Encoder.save` wrote, of whatever family.

    Raises a `UserError` if there is none, its family is unknown, or its files are damaged or do not belong together.
    """
    path = Path(path)
    if not (path / CONFIG_FILE).is_file():
        fix = "run `cm3leon train-encoder` first, or `cm3leon import` a folder of CLIP or SigLIP"
        raise UserError(f"no encoder at {path}: {fix}")
    stored = read_encoder_record(path)
    config = ENCODERS.load(stored["family"])
    implementation = load_attribute(config.implementation, f"the encoder {stored['family']!r}")
    arrays = weights.load(path, _FIX)
    try:
        encoder: Encoder = implementation.restore(stored["settings"], arrays, path)
    except (OSError, KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise UserError(f"the encoder {path} is damaged ({error}); {_FIX}") from None
    if encoder.fingerprint != stored["fingerprint"]:
        raise UserError(f"{path / WEIGHTS_FILE} is not the file that {path / CONFIG_FILE} was written with; {_FIX}")
    return encoder


class _EncoderOrigin(TypedDict):
    values: NotRequired[dict[str, Any]]


class EncoderRecord(TypedDict):
    """The config.json of an encoder; `training` is what it was made by, if it was here."""

    family: str
    settings: dict[str, Any]
    fingerprint: str
    training: NotRequired[_EncoderOrigin | None]


def read_encoder_record(path: Path) -> EncoderRecord:
    """Reads an encoder's config.json. Raises a `UserError` if it is missing or damaged."""
    return read_record(path / CONFIG_FILE, "the encoder's config", EncoderRecord, _FIX)


def dropped(count: int, dropout: float, key: int) -> Bool[np.ndarray, "count"]:
    """Which of a query's tokens or patches are left out; one always stays."""
    random = counter_random.uniform(key, np.arange(count))
    out = random < dropout
    if count and out.all():
        out[int(np.argmax(random))] = False
    return out


def l2_normalize(vectors: Float32[np.ndarray, "... dim"]) -> Float32[np.ndarray, "... dim"]:
    """Vectors of unit norm; zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
