"""Runs a compiled encoder over any number of rows, on all devices of this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32

# Most texts or images in one call.
_BATCH = 256


class DeviceBatches:
    """Weights on every device, and calls with the rows of a batch split over them."""

    def __init__(self, weights: Mapping[str, np.ndarray], dim: int) -> None:
        """`dim` is the width of a vector."""
        self._dim, self._mesh = dim, Mesh(jax.local_devices(), ("data",))
        self._weights = jax.device_put(dict(weights), NamedSharding(self._mesh, PartitionSpec()))

    def __call__(self, function: Callable[..., Array], *columns: np.ndarray) -> Float32[np.ndarray, "n dim"]:
        """Rows of the columns through `function`: batches of one size, the last one filled up with zeros."""
        count, num_devices = len(columns[0]), self._mesh.size
        # A few sizes for any number of rows, so that little is compiled.
        size = -(-min(_BATCH, 1 << max(count - 1, 0).bit_length()) // num_devices) * num_devices
        sharding = NamedSharding(self._mesh, PartitionSpec("data"))
        result = np.zeros((count, self._dim), np.float32)
        for start in range(0, count, size):
            batch = [np.asarray(column[start : start + size]) for column in columns]
            padded = [np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)) for rows in batch]
            found = function(self._weights, *jax.device_put(padded, sharding))
            result[start : start + size] = np.asarray(found)[: len(batch[0])]
        return result
