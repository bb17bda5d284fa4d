"""Writes weights as sharded safetensors; in memory is one shard."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
from jaxtyping import Float

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write, write_json

DTYPES = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("<f2")}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose values are read when they are written."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Float[np.ndarray, "..."]]

    def num_bytes(self, dtype: str) -> int:
        """Its size as it is written."""
        return math.prod(self.shape) * DTYPES[dtype].itemsize


def parse_size(text: str) -> int:
    """Bytes of a text such as "5GB", "100MB" or "4096"."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?) ?([KMG]B)?", text.strip().upper())
    size = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if size < 1:
        raise UserError(f"--shard-size={text}: write a number of bytes, or one with KB, MB or GB, such as 2GB")
    return size


def write_weights(
    folder: Path,
    tensors: Sequence[LazyTensor],
    dtype: str,
    shard_bytes: int,
    written: Callable[[], None],
    stem: str = "model",
) -> list[Path]:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` (or one tensor) and their index; returns them.

    `stem` is what the names of the files begin with.

    Calls `written` after each tensor. Raises a `UserError` if a value lies outside the range of `dtype`.
    """
    shards: list[list[LazyTensor]] = [[]]
    for tensor in tensors:
        size = sum(other.num_bytes(dtype) for other in shards[-1])
        if shards[-1] and size + tensor.num_bytes(dtype) > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    else:
        names = [f"{stem}-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
        where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.num_bytes(dtype) for tensor in tensors)
        write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, dtype, written)
    return [folder / name for name in names]


def _write_shard(file: Path, shard: Sequence[LazyTensor], dtype: str, written: Callable[[], None]) -> None:
    arrays = {}
    for tensor in shard:
        with np.errstate(over="ignore"):
            arrays[tensor.name] = np.asarray(tensor.read(), DTYPES[dtype], order="C")
        if not np.isfinite(arrays[tensor.name]).all():
            raise UserError(f"{tensor.name} has values beyond the range of {dtype}: take --dtype=float32")
        written()
    # transformers asks which framework's layout this is: [out, in], PyTorch's.
    with atomic_write(file) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata={"format": "pt"})
