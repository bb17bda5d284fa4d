"""The frozen image tokenizer: images -> codes and back, from a folder of `config.json` and `model.safetensors`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired

import jax
import numpy as np
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8
from pydantic import with_config
from safetensors import SafetensorError
from typing_extensions import TypedDict

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write, write_json
from cm3leon_jax.image_tokenizers.vqgan.config import ImageTokenizerConfig
from cm3leon_jax.image_tokenizers.vqgan.model import abstract_vqgan, bind, parameters
from cm3leon_jax.image_tokenizers.vqgan.pixels import from_unit_range, to_unit_range
from cm3leon_jax.records import OPEN, PositiveCount, read_record

CONFIG_FILE = "config.json"
# Images in one call where the caller names no number.
_DEFAULT_BATCH = 64
WEIGHTS_FILE = "model.safetensors"


_MEND = "delete the folder and run `cm3leon train-image-tokenizer` again"


@with_config(OPEN)
class _Values(TypedDict):
    num_steps: PositiveCount


@with_config(OPEN)
class _Training(TypedDict):
    values: _Values


@with_config(OPEN)
class ImageTokenizerRecord(TypedDict):
    """The config.json of an image tokenizer; `training` is what it was trained by, if it was here."""

    architecture: ImageTokenizerConfig
    fingerprint: str
    training: NotRequired[_Training | None]


def read_image_tokenizer_record(path: Path) -> ImageTokenizerRecord:
    """Reads an image tokenizer's config.json.

    Raises:
      UserError: if it is missing or damaged.
    """
    return read_record(path / CONFIG_FILE, "the image tokenizer's config", ImageTokenizerRecord, _MEND)


class ImageTokenizer:
    """A trained VQGAN. Codes are int32 in raster order; images are uint8, [B R R C]."""

    def __init__(self, config: ImageTokenizerConfig, weights: Mapping[str, Array | np.ndarray]) -> None:
        """Takes `weights` by the names `vqgan.parameters` gives."""
        self.config = config
        self.weights = {name: np.asarray(weights[name]) for name in sorted(weights)}
        self.fingerprint = _fingerprint(config, self.weights)
        self._mesh = jax.make_mesh(
            (jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()
        )
        self._on_devices = jax.device_put(self.weights, NamedSharding(self._mesh, PartitionSpec()))

    @classmethod
    def load(cls, path: str | Path) -> ImageTokenizer:
        """Reads the folder that `save` wrote.

        Raises:
          UserError: if there is none, or its files are damaged or do not belong together.
        """
        path = Path(path)
        if not (path / CONFIG_FILE).is_file() or not (path / WEIGHTS_FILE).is_file():
            raise UserError(f"no image tokenizer at {path}: run `cm3leon train-image-tokenizer` first")
        stored, fix = read_image_tokenizer_record(path), _MEND
        config = dataclasses.replace(stored["architecture"], path=str(path))
        try:
            weights = safetensors.numpy.load_file(path / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path / WEIGHTS_FILE} is damaged ({error}); {fix}") from None
        # First of all: what was not written together need not even make a model.
        if _fingerprint(config, {name: weights[name] for name in sorted(weights)}) != stored["fingerprint"]:
            raise UserError(f"{path / WEIGHTS_FILE} is not the file that {path / CONFIG_FILE} was written with; {fix}")
        _check_shapes(config, weights, path / WEIGHTS_FILE, fix)
        return cls(config, weights)

    def save(self, path: str | Path, training: dict[str, Any] | None = None) -> None:
        """Writes the folder; `training` is kept as a record. The config is written last and seals the weights."""
        path = Path(path)
        with atomic_write(path / WEIGHTS_FILE) as temporary:
            safetensors.numpy.save_file(self.weights, temporary)
        record = {"architecture": architecture(self.config), "fingerprint": self.fingerprint, "training": training}
        write_json(path / CONFIG_FILE, record)

    def encode(self, images: UInt8[np.ndarray, "B R R C"], batch_size: int | None = None) -> Int[np.ndarray, "B L"]:
        """Codes of images, `batch_size` at a time (default: 64), the last batch padded to the same shape."""
        side, channels = self.config.resolution, self.config.in_channels
        if images.shape[1:] != (side, side, channels):
            raise ValueError(f"images have shape {images.shape[1:]}, the tokenizer takes {(side, side, channels)}")
        codes = self._in_batches(_encode(self.config), images, batch_size)
        return codes.reshape(len(images), self.config.image_length)

    def decode(self, codes: Int[np.ndarray, "B L"], batch_size: int | None = None) -> UInt8[np.ndarray, "B R R C"]:
        """Images of codes, `batch_size` at a time (default: 64).

        Raises:
          ValueError: if a code lies outside the codebook, or there are too few or too many for an image.
        """
        codes = np.asarray(codes)
        grid = self.config.grid
        if codes.shape[1:] != (grid * grid,):
            raise ValueError(f"codes have shape {codes.shape}, an image has {grid * grid} codes")
        if codes.size and (codes.min() < 0 or codes.max() >= self.config.codebook_size):
            raise ValueError(
                f"codes reach from {codes.min()} to {codes.max()}, outside 0..{self.config.codebook_size - 1}"
            )
        return self._in_batches(_decode(self.config), codes.astype(np.int32).reshape(-1, grid, grid), batch_size)

    def reconstruct(
        self, images: UInt8[np.ndarray, "B R R C"], batch_size: int | None = None
    ) -> UInt8[np.ndarray, "B R R C"]:
        """Images through codes and back."""
        return self.decode(self.encode(images, batch_size), batch_size)

    def _in_batches(self, function: Callable[..., Array], rows: np.ndarray, batch_size: int | None) -> np.ndarray:
        batch_size = batch_size or min(max(len(rows), 1), _DEFAULT_BATCH)
        # One shape, so one compilation; and the same program for every batch, so that codes cannot depend on the
        # number of images that happen to be left at the end.
        split = batch_size % self._mesh.size == 0
        sharding = NamedSharding(self._mesh, PartitionSpec("data" if split else None))
        results = []
        for start in range(0, max(len(rows), 1), batch_size):
            batch = np.asarray(rows[start : start + batch_size])
            padding = np.zeros((batch_size - len(batch), *batch.shape[1:]), batch.dtype)
            result = function(self._on_devices, jax.device_put(np.concatenate([batch, padding]), sharding))
            results.append(np.asarray(result)[: len(batch)])
        return np.concatenate(results)


def architecture(config: ImageTokenizerConfig) -> dict[str, Any]:
    """The fields that make the model what it is: all but where it is kept."""
    fields = dataclasses.asdict(config)
    del fields["path"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


@functools.cache
def _encode(config: ImageTokenizerConfig) -> Callable[..., Int[Array, "B G G"]]:
    model = abstract_vqgan(config)

    @jax.jit
    def encode(weights: dict[str, Array], images: UInt8[Array, "B R R C"]) -> Int[Array, "B G G"]:
        vqgan = bind(model, weights)
        return vqgan.quantize.nearest(vqgan.encode(to_unit_range(images)))

    return encode


@functools.cache
def _decode(config: ImageTokenizerConfig) -> Callable[..., UInt8[Array, "B R R C"]]:
    model = abstract_vqgan(config)

    @jax.jit
    def decode(weights: dict[str, Array], codes: Int[Array, "B G G"]) -> UInt8[Array, "B R R C"]:
        vqgan = bind(model, weights)
        return from_unit_range(vqgan.decode(vqgan.quantize.lookup(codes)))

    return decode


def _fingerprint(config: ImageTokenizerConfig, weights: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(repr(sorted(architecture(config).items())).encode())
    for name, value in weights.items():
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()[:16]


def _check_shapes(config: ImageTokenizerConfig, weights: dict[str, np.ndarray], file: Path, fix: str) -> None:
    expected = {name: value.shape for name, value in parameters(abstract_vqgan(config)).items()}
    for name in sorted(expected.keys() | weights.keys()):
        found = weights[name].shape if name in weights else "absent"
        if name not in expected or found != expected[name]:
            raise UserError(f"{file}: tensor {name} is {found}, its config says {expected.get(name, 'absent')}; {fix}")
