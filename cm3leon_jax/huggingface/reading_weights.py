"""The tensors of a Hugging Face folder by name, each read in parts, from safetensors or PyTorch's own files."""

from __future__ import annotations

import fnmatch
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from jaxtyping import Float, Float32

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_object

# In this order; those of `transformers`, then of `diffusers`.
_NAMES = (
    *("model.safetensors", "pytorch_model.bin"),
    *("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
)
# Under these a training program keeps the weights in a file that holds more.
_CONTAINERS = ("state_dict", "model")
_FLOATS = ("F64", "F32", "F16", "BF16")
# Before it, PyTorch's reader of tensors alone could be made to run code (CVE-2025-32434).
_SAFE_TORCH = (2, 6)

Index = tuple[slice, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk."""

    name: str
    file: Path
    shape: tuple[int, ...]
    # A part of it, of the type in which it is stored or float32.
    _read: Callable[[Index], Float[np.ndarray, "..."]]

    def read(self, index: Index) -> Float32[np.ndarray, "..."]:
        """A part of it; refuses values that are not finite, with the names of the tensor and the file."""
        with np.errstate(over="ignore"):
            part = self._read(index).astype(np.float32, copy=False)
        if not np.isfinite(part).all():
            raise UserError(
                f"{self.file}: tensor {self.name} has values that are NaN or infinite as float32: the file is "
                "damaged, or of a model whose training had failed; take another"
            )
        return part


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights; safetensors where there are both.

    Raises a `UserError` if there are none, or their index is damaged or names files that are not there.
    """
    for name in _NAMES:
        index = folder / f"{name}.index.json"
        if index.exists():
            return [folder / part for part in _parts(index)]
        if (folder / name).exists():
            return [folder / name]
    raise UserError(f"no weights in {folder}: neither {' nor '.join(_NAMES[:2])}, nor an index of either")


def open_weights(source: Path, ignored: tuple[str, ...] = ()) -> dict[str, StoredTensor]:
    """All tensors of a folder or a file, opened and not read, but those whose names match `ignored` ("*.position_ids").

    Raises a `UserError` if there are no weights, or files are missing, damaged, or could run code when read.
    """
    result: dict[str, StoredTensor] = {}
    for file in [source] if source.is_file() else weight_files(source):
        if not file.is_file():
            raise UserError(f"{file} is damaged: it is no ordinary file")
        result |= (_open_safetensors if file.suffix == ".safetensors" else _open_pytorch)(file, ignored)
    return result


def _parts(index: Path) -> list[str]:
    try:
        names = sorted(set(read_object(index, "the index of the weights")["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is damaged: it has no weight_map of tensor names to files") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not _is_file(index.parent / name):
            raise UserError(f"{index} names {name!r}, which is no file beside it: the folder is not complete")
    return names


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # A name that no file system takes.
        return False


def _is_zip(file: Path) -> bool:
    """Whether a file of PyTorch can be mapped into memory; those before its version 1.6 are read whole."""
    return zipfile.is_zipfile(file)


def _open_safetensors(file: Path, ignored: tuple[str, ...]) -> dict[str, StoredTensor]:
    try:
        opened = safetensors.safe_open(file, framework="numpy")
        found = {name: opened.get_slice(name) for name in opened.keys() if not _matches(name, ignored)}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is damaged ({error}): get it again") from None

    def stored(name: str, tensor: Any) -> StoredTensor:
        if tensor.get_dtype() not in _FLOATS:
            raise UserError(f"{file}: {name} is of type {tensor.get_dtype()}, which is none of {', '.join(_FLOATS)}")
        return StoredTensor(name, file, tuple(tensor.get_shape()), lambda index: tensor[index])

    return {name: stored(name, tensor) for name, tensor in found.items()}


def _open_pytorch(file: Path, ignored: tuple[str, ...]) -> dict[str, StoredTensor]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file.parent} has its weights in PyTorch's format only, and torch is not installed: "
            "`pip install torch`, or convert the folder to safetensors"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < _SAFE_TORCH:
        raise UserError(
            f"{file.parent} has its weights in PyTorch's format only, and this torch {torch.__version__} could be made "
            "to run code by them: `pip install 'torch>=2.6'`, or take the folder's safetensors"
        )
    try:
        # Reads tensors and nothing else: a pickle can name any function to call.
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # A damaged file fails in many ways, a refused one with a page of advice.
        what = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"an object of {what[1]}" if what else str(error).partition("\n")[0]
        raise UserError(
            f"{file} is refused: it is damaged, or holds more than tensors ({reason}); take safetensors, or, if you "
            "trust the file, write its tensors alone (docs/export.md)"
        ) from None

    def stored(name: str, tensor: Any) -> StoredTensor:
        return StoredTensor(name, file, tuple(tensor.shape), lambda index: tensor[index].to(torch.float32).numpy())

    for name in _CONTAINERS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict):
        raise UserError(f"{file} holds a {type(found).__name__}, not tensors by name")
    found = {str(name): tensor for name, tensor in found.items() if not _matches(str(name), ignored)}
    for name, tensor in found.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise UserError(f"{file}: {name} is no tensor of floats")
    return {name: stored(name, tensor) for name, tensor in found.items()}
