"""The trained VQGAN as an image tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from cm3leon_jax.image_tokenizers.base import ImageTokenizer
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.model import abstract_vqgan, from_unit_range, to_unit_range
from cm3leon_jax.named_parameters import bind, parameters

# Pixels that a CPU takes at a time, and device: then what goes from layer to layer stays in its cache.
_CPU_PIXELS = 2**16


class VQGANTokenizer(ImageTokenizer):
    """A trained VQGAN; its arrays have the names that `parameters` gives."""

    config: VQGANConfig

    def __init__(self, config: VQGANConfig, weights: Mapping[str, Array | np.ndarray]) -> None:
        super().__init__(config, weights)
        self._mesh = Mesh(jax.local_devices(), ("data",))
        self._on_devices = jax.device_put(self.weights, NamedSharding(self._mesh, PartitionSpec()))

    @classmethod
    def shapes(cls, config: VQGANConfig) -> dict[str, tuple[int, ...]]:  # type: ignore[override]
        return {name: value.shape for name, value in parameters(abstract_vqgan(config)).items()}

    def encode_batch(self, images: UInt8[np.ndarray, "B R R C"]) -> Int[np.ndarray, "B L"]:
        codes = self._in_parts(partial(_encode, self.config, self._on_devices), images)
        return codes.reshape(len(images), self.config.image_length)

    def decode_batch(self, codes: Int[np.ndarray, "B L"]) -> UInt8[np.ndarray, "B R R C"]:
        grid = self.config.grid
        return self._in_parts(partial(_decode, self.config, self._on_devices), codes.reshape(-1, grid, grid))

    def _in_parts(self, function: Callable[[Array], Array], batch: np.ndarray) -> np.ndarray:
        """A function of images, of as many at a time as the devices are fast with."""
        size = len(batch)
        if jax.default_backend() == "cpu":
            size = min(size, max(1, _CPU_PIXELS // self.config.resolution**2) * self._mesh.size)
        parts = [np.asarray(function(self._sharded(batch[i : i + size]))) for i in range(0, len(batch), max(1, size))]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _sharded(self, batch: np.ndarray) -> Array:
        divides = len(batch) % self._mesh.size == 0
        return jax.device_put(batch, NamedSharding(self._mesh, PartitionSpec("data" if divides else None)))


@partial(jax.jit, static_argnums=0)
def _encode(config: VQGANConfig, weights: dict[str, Array], images: UInt8[Array, "B R R C"]) -> Int[Array, "B G G"]:
    vqgan = bind(abstract_vqgan(config), weights)
    return vqgan.quantize.nearest(vqgan.encode(to_unit_range(images)))


@partial(jax.jit, static_argnums=0)
def _decode(config: VQGANConfig, weights: dict[str, Array], codes: Int[Array, "B G G"]) -> UInt8[Array, "B R R C"]:
    vqgan = bind(abstract_vqgan(config), weights)
    return from_unit_range(vqgan.decode(vqgan.quantize.lookup(codes)))
