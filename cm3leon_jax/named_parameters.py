"""Parameters of modules by dotted name, such as `encoder.down.0.block.1.conv1.kernel`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from flax import nnx
from jaxtyping import Array

AnyModule = TypeVar("AnyModule", bound=nnx.Module)


def parameters(module: nnx.Module) -> dict[str, Any]:
    """Every parameter (of an abstract module: its shape) by name."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(str(part) for part in path): variable.get_value() for path, variable in flat}


def bind(module: AnyModule, values: Mapping[str, Array | np.ndarray]) -> AnyModule:
    """A copy of `module` (which may be abstract) that holds `values` under the names `parameters` gives."""
    graph, _ = nnx.split(module)
    flat = [
        (tuple(int(part) if part.isdigit() else part for part in name.split(".")), nnx.Param(value))
        for name, value in values.items()
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def named_generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers for the parameter of a name, on the host.

    Compiling a hundred random generators for the devices would take longer than the first 100 steps of a small run.
    """
    return np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
