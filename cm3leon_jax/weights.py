"""Arrays by name in a folder's model.safetensors, and the fingerprint that its config.json seals them with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write, write_json

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save(folder: Path, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Writes FOLDER/model.safetensors, then `record` as its config.json."""
    with atomic_write(folder / WEIGHTS_FILE) as temporary:
        safetensors.numpy.save_file(dict(arrays), temporary)
    write_json(folder / CONFIG_FILE, record)


def load(folder: Path, fix: str) -> dict[str, np.ndarray]:
    """Reads FOLDER/model.safetensors. Raises a `UserError` if it is missing or damaged; `fix` ends the message."""
    try:
        arrays = safetensors.numpy.load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS_FILE} is damaged ({error}); {fix}") from None
    return {name: arrays[name] for name in sorted(arrays)}


def fingerprint(settings: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """16 hexadecimal digits that follow from JSON-like settings, and the bits of arrays."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()[:16]


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray], file: Path, fix: str
) -> None:
    """Compares the shapes of arrays with those of a config.

    Raises a `UserError` that names the first array that is missing, unexpected, or of another shape.
    """
    for name in sorted(expected.keys() | arrays.keys()):
        found = arrays[name].shape if name in arrays else "absent"
        if name not in expected or found != expected[name]:
            raise UserError(f"{file}: tensor {name} is {found}, its config says {expected.get(name, 'absent')}; {fix}")
