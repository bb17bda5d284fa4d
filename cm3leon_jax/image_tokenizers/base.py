"""What the package needs of an image tokenizer of any family: images -> codes and back, in a folder of two files.

IMAGE_TOKENIZER/config.json          its architecture, fingerprint, and what it was trained on
IMAGE_TOKENIZER/model.safetensors    its arrays by name
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from jaxtyping import Array, Int, UInt8
from typing_extensions import TypedDict

from cm3leon_jax import weights
from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.config import IMAGE_TOKENIZERS, ImageTokenizerConfig
from cm3leon_jax.records import check_shape, read_record
from cm3leon_jax.registry import load_attribute
from cm3leon_jax.weights import CONFIG_FILE, WEIGHTS_FILE

# Images in one call where the caller names no number.
_DEFAULT_BATCH = 64
_FIX = "delete the folder and run `cm3leon train-image-tokenizer` again"


class ImageTokenizer(abc.ABC):
    """A frozen image tokenizer. Codes are int32 in raster order; images are uint8, [B R R C].

    A family implements `encode_batch` and `decode_batch`, and `shapes` if it has arrays.
    """

    def __init__(self, config: ImageTokenizerConfig, arrays: Mapping[str, Array | np.ndarray] | None = None) -> None:
        """Takes the arrays by name, with the shapes that `shapes(config)` gives."""
        self.config = config
        self.weights = {name: np.asarray(value) for name, value in sorted((arrays or {}).items())}
        self.fingerprint = weights.fingerprint(architecture(config), self.weights)

    @classmethod
    def shapes(cls, config: ImageTokenizerConfig) -> dict[str, tuple[int, ...]]:
        """The shape of every array, by name."""
        return {}

    @abc.abstractmethod
    def encode_batch(self, images: UInt8[np.ndarray, "B R R C"]) -> Int[np.ndarray, "B L"]:
        """Codes of images."""

    @abc.abstractmethod
    def decode_batch(self, codes: Int[np.ndarray, "B L"]) -> UInt8[np.ndarray, "B R R C"]:
        """Images of codes."""

    def encode(self, images: UInt8[np.ndarray, "B R R C"], batch_size: int | None = None) -> Int[np.ndarray, "B L"]:
        """Codes of images, `batch_size` at a time (default: 64), the last batch padded to the same shape."""
        side, channels = self.config.resolution, self.config.in_channels
        if images.shape[1:] != (side, side, channels):
            raise ValueError(f"images have shape {images.shape[1:]}, the tokenizer takes {(side, side, channels)}")
        return _in_batches(self.encode_batch, images, batch_size)

    def decode(self, codes: Int[np.ndarray, "B L"], batch_size: int | None = None) -> UInt8[np.ndarray, "B R R C"]:
        """Images of codes, `batch_size` at a time (default: 64).

        Raises a `ValueError` if a code is outside the codebook, or there are too few or too many for an image.
        """
        codes = np.asarray(codes)
        length, last = self.config.image_length, self.config.codebook_size - 1
        if codes.shape[1:] != (length,):
            raise ValueError(f"codes have shape {codes.shape}, an image has {length} codes")
        if codes.size and (codes.min() < 0 or codes.max() > last):
            raise ValueError(f"codes reach from {codes.min()} to {codes.max()}, outside 0..{last}")
        return _in_batches(self.decode_batch, codes.astype(np.int32), batch_size)

    def reconstruct(
        self, images: UInt8[np.ndarray, "B R R C"], batch_size: int | None = None
    ) -> UInt8[np.ndarray, "B R R C"]:
        return self.decode(self.encode(images, batch_size), batch_size)

    def save(self, path: str | Path, training: dict[str, Any] | None = None) -> None:
        """Writes the folder, the config last; `training` says what it was trained on."""
        record = {"architecture": architecture(self.config), "fingerprint": self.fingerprint, "training": training}
        weights.save(Path(path), self.weights, record)


def load_image_tokenizer(path: str | Path) -> ImageTokenizer:
    """Reads the folder that `ImageTokenizer.save` wrote, of whatever family.

    Raises a `UserError` if there is none, its family is unknown, or its files are damaged or do not belong together.
    """
    path = Path(path)
    if not (path / CONFIG_FILE).is_file() or not (path / WEIGHTS_FILE).is_file():
        raise UserError(f"no image tokenizer at {path}: run `cm3leon train-image-tokenizer` first")
    stored = read_image_tokenizer_record(path)
    values = {**stored["architecture"], "path": str(path)}
    config_class = IMAGE_TOKENIZERS.load(stored["architecture"]["family"])
    config = check_shape(values, config_class, "the image tokenizer's config", path / CONFIG_FILE, _FIX)
    arrays = weights.load(path, _FIX)
    # Before the model is built: sizes that were changed may not even make one.
    if weights.fingerprint(architecture(config), arrays) != stored["fingerprint"]:
        raise UserError(f"{path / WEIGHTS_FILE} is not the file that {path / CONFIG_FILE} was written with; {_FIX}")
    implementation = image_tokenizer_class(config)
    weights.check_shapes(implementation.shapes(config), arrays, path / WEIGHTS_FILE, _FIX)
    return implementation(config, arrays)


def image_tokenizer_class(config: ImageTokenizerConfig) -> type[ImageTokenizer]:
    """The class that a config is of."""
    found: type[ImageTokenizer] = load_attribute(config.implementation, f"the image tokenizer {config.family!r}")
    return found


def architecture(config: ImageTokenizerConfig, with_defaults: bool = False) -> dict[str, Any]:
    """The fields that make the image tokenizer what it is: all but where it is kept, and how it was trained.

    As it is stored; `with_defaults` adds the config's `omitted_defaults`.
    """
    fields = dataclasses.asdict(config)
    del fields["path"], fields["training"]
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in config.omitted_defaults:
        if not with_defaults and fields[name] == defaults[name]:
            del fields[name]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


class _Architecture(TypedDict):
    family: str


class _ImageTokenizerOrigin(TypedDict):
    values: dict[str, Any]


class ImageTokenizerRecord(TypedDict):
    """The config.json of an image tokenizer; `training` is what it was trained by, if it was here."""

    architecture: _Architecture
    fingerprint: str
    training: NotRequired[_ImageTokenizerOrigin | None]


def read_image_tokenizer_record(path: Path) -> ImageTokenizerRecord:
    """Reads an image tokenizer's config.json. Raises a `UserError` if it is missing or damaged."""
    return read_record(path / CONFIG_FILE, "the image tokenizer's config", ImageTokenizerRecord, _FIX)


def _in_batches(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, batch_size: int | None) -> Any:
    batch_size = batch_size or min(max(len(rows), 1), _DEFAULT_BATCH)
    results = []
    for start in range(0, max(len(rows), 1), batch_size):
        batch = np.asarray(rows[start : start + batch_size])
        # One shape for every batch: codes cannot depend on the number of images that happen to be left at the end.
        padding = np.zeros((batch_size - len(batch), *batch.shape[1:]), batch.dtype)
        results.append(function(np.concatenate([batch, padding]))[: len(batch)])
    return np.concatenate(results)
