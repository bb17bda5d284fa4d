"""The tensors of a Hugging Face folder by name, each read in parts: safetensors, or PyTorch's own files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from jaxtyping import Float32

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_json

_SAFETENSORS = "model.safetensors"
_PYTORCH = "pytorch_model.bin"
_FLOATS = ("F64", "F32", "F16", "BF16")

Index = tuple[slice, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk."""

    shape: tuple[int, ...]
    # A part of it, as float32.
    read: Callable[[Index], Float32[np.ndarray, "..."]]


def open_weights(folder: Path, without: tuple[str, ...] = ()) -> dict[str, StoredTensor]:
    """All tensors of a folder, opened and not read; safetensors where there are both.

    Args:
      folder: with the weights.
      without: endings of the names of tensors that are left out, of whatever type they are.

    Raises:
      UserError: if there are no weights, or files are missing, damaged, or could run code when read.
    """
    for name, opened in ((_SAFETENSORS, _open_safetensors), (_PYTORCH, _open_pytorch)):
        index = folder / f"{name}.index.json"
        if index.exists():
            return _merged(opened(folder / part, without) for part in _parts(index))
        if (folder / name).exists():
            return opened(folder / name, without)
    raise UserError(f"no weights in {folder}: neither {_SAFETENSORS} nor {_PYTORCH}, nor an index of either")


def _parts(index: Path) -> list[str]:
    try:
        names = sorted(set(read_json(index, "the index of the weights")["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is damaged: it has no weight_map of tensor names to files") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index} names {name!r}, which is no file beside it: the folder is not complete")
    return names


def _merged(parts: Iterable[dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    result: dict[str, StoredTensor] = {}
    for part in parts:
        result |= part
    return result


def _open_safetensors(file: Path, without: tuple[str, ...]) -> dict[str, StoredTensor]:
    try:
        opened = safetensors.safe_open(file, framework="numpy")
        found = {name: opened.get_slice(name) for name in opened.keys() if not name.endswith(without)}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is damaged ({error}): get it again") from None

    def stored(name: str, tensor: Any) -> StoredTensor:
        if tensor.get_dtype() not in _FLOATS:
            raise UserError(f"{file}: {name} is of type {tensor.get_dtype()}, which is none of {', '.join(_FLOATS)}")
        return StoredTensor(tuple(tensor.get_shape()), lambda index: tensor[index].astype(np.float32, copy=False))

    return {name: stored(name, tensor) for name, tensor in found.items()}


def _open_pytorch(file: Path, without: tuple[str, ...]) -> dict[str, StoredTensor]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file.parent} has its weights in PyTorch's format only, and torch is not installed: "
            "`pip install torch`, or convert the folder to safetensors"
        ) from None
    try:
        # Reads tensors and nothing else: a pickle can name any function to call.
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # A damaged file fails in many ways, a refused one with a page of advice.
        raise UserError(
            f"{file} is refused: it is damaged, or holds more than tensors ({str(error).splitlines()[0]}); "
            "take the folder's safetensors"
        ) from None

    def stored(tensor: Any) -> StoredTensor:
        return StoredTensor(tuple(tensor.shape), lambda index: tensor[index].to(torch.float32).numpy())

    if not isinstance(found, dict):
        raise UserError(f"{file} holds a {type(found).__name__}, not tensors by name")
    found = {name: tensor for name, tensor in found.items() if not str(name).endswith(without)}
    for name, tensor in found.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise UserError(f"{file}: {name} is no tensor of floats")
    return {name: stored(tensor) for name, tensor in found.items()}
