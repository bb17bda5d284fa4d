"""Writes weights as sharded safetensors, piece by piece: what is in memory is one piece, never a shard.

A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: each tensor's type, shape and
place), and the values of all tensors end to end.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from jaxtyping import Float

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import write_json

DTYPES = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("<f2")}
_NAMES_IN_FILES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose values are made when they are written."""

    name: str
    shape: tuple[int, ...]
    # The values in C order, as any number of arrays.
    pieces: Callable[[], Iterable[Float[np.ndarray, "..."]]]


def parse_size(text: str) -> int:
    """Bytes of a text such as "5GB", "100MB" or "4096"."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?) ?([KMG]B)?", text.strip().upper())
    size = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if size < 1:
        raise UserError(f"--shard-size={text}: write a number of bytes, or one with KB, MB or GB, such as 5GB")
    return size


def write_weights(
    folder: Path, tensors: Sequence[LazyTensor], dtype: str, shard_bytes: int, written: Callable[[], None]
) -> dict[str, str]:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` (or one tensor) and their index.

    Args:
      folder: where to.
      tensors: in this order.
      dtype: one of `DTYPES`.
      shard_bytes: most bytes of a file's values.
      written: called after each tensor.

    Returns:
      the SHA-256 of each file of weights, by its name.

    Raises:
      UserError: if a value lies outside the range of `dtype`.
    """
    shards: list[list[LazyTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + _bytes(tensor, dtype) > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += _bytes(tensor, dtype)
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
        where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(_bytes(tensor, dtype) for tensor in tensors)
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    sums = {}
    for name, shard in zip(names, shards, strict=True):
        digest = hashlib.sha256()
        with (folder / name).open("wb") as file:
            for part in _parts_of_file(shard, dtype, written):
                file.write(part)
                digest.update(part)
        sums[name] = digest.hexdigest()
    return sums


def _parts_of_file(
    shard: Sequence[LazyTensor], dtype: str, written: Callable[[], None]
) -> Iterator[memoryview | bytes]:
    yield _header(shard, dtype)
    for tensor in shard:
        yield from _values(tensor, dtype)
        written()


def _bytes(tensor: LazyTensor, dtype: str) -> int:
    return math.prod(tensor.shape) * DTYPES[dtype].itemsize


def _header(tensors: Sequence[LazyTensor], dtype: str) -> bytes:
    # transformers asks which framework's layout this is: [out, in], PyTorch's.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        stop = start + _bytes(tensor, dtype)
        place = [start, stop]
        header[tensor.name] = {"dtype": _NAMES_IN_FILES[dtype], "shape": tensor.shape, "data_offsets": place}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    # The values begin at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _values(tensor: LazyTensor, dtype: str) -> Iterator[memoryview]:
    for piece in tensor.pieces():
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(piece, DTYPES[dtype])
        if not np.isfinite(values).all():
            raise UserError(f"{tensor.name} has values beyond the range of {dtype}: take --dtype=float32")
        yield values.view(np.uint8).data
