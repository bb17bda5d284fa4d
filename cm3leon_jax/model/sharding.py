"""From the logical names of axes to the axes of the device mesh: one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cm3leon_jax.config import MeshConfig
from cm3leon_jax.errors import UserError

MESH_AXES = ("replica", "fsdp", "tensor")

# Parameters are split over "fsdp" along the model dimension and over "tensor" along what a layer works on in parallel.
RULES: dict[str, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "ffn": "tensor",
    "head": None,
    "position": None,
}

# A step of decoding reads every weight once, for a few tokens: split only where the work is split, never gathered.
DECODING_RULES = RULES | {"embed": None}

# The batch is split over every axis that holds different data.
BATCH_SPEC = PartitionSpec(("replica", "fsdp"))


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over the devices (all by default); one axis of the config may be -1, the rest of the devices."""
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"config.mesh: only one of {', '.join(MESH_AXES)} may be -1, but {' and '.join(free)} are")
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if free and fixed > 0:
        sizes[free[0]] = len(devices) // fixed
    if int(np.prod(list(sizes.values()))) != len(devices):
        shape = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise UserError(f"config.mesh: {shape} does not make {len(devices)} devices; change one of the sizes")
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def refuse_uneven_batch(batch_size: int, mesh: Mesh) -> None:
    """A batch must give every device that holds other data the same number of sequences."""
    ways = mesh.shape["replica"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise UserError(
            f"config.batch.batch_size {batch_size} does not divide by the {ways} ways of the mesh axes replica and fsdp: "
            f"take a multiple of {ways}, or change config.mesh"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the mesh."""
    return NamedSharding(mesh, BATCH_SPEC)


def cache_sharding(num_rows: int, mesh: Mesh) -> NamedSharding:
    """How keys and values, [B H S Dh], lie on the mesh; too few rows to share out stay on every device."""
    ways = mesh.shape["replica"] * mesh.shape["fsdp"]
    rows = BATCH_SPEC[0] if num_rows % ways == 0 else None
    return NamedSharding(mesh, PartitionSpec(rows, RULES["heads"]))


def parameter_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a parameter, given its path in a tree."""
    return ".".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def shardings(abstract: Any, mesh: Mesh, rules: Mapping[str, str | None] = RULES) -> Any:
    """The sharding of every array of a training state, in the same tree.

    Parameters, and the optimizer's moments, which have the same shapes, follow `rules`; everything else is replicated.

    Raises:
      UserError: names the parameter, its dimension and the mesh axis where a dimension does not divide.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        return leaf.replace(NamedSharding(mesh, _parameter_spec(parameter_name(path), leaf, mesh, rules)))

    return jax.tree_util.tree_map_with_path(sharding, abstract, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _parameter_spec(name: str, parameter: nnx.Variable, mesh: Mesh, rules: Mapping[str, str | None]) -> PartitionSpec:
    axes = parameter.get_metadata("logical_axes")
    shape = parameter.get_value().shape
    if len(shape) == len(axes) + 1:
        # The parameters of a stack of layers have one axis more than their layer gave them.
        axes = ("layers", *axes)
    spec = [rules[axis] for axis in axes]
    for dimension, (axis, mesh_axis, size) in enumerate(zip(axes, spec, shape, strict=True)):
        if mesh_axis and size % mesh.shape[mesh_axis]:
            raise UserError(
                f"parameter {name} cannot be sharded: its dimension {dimension} ({axis}, {size}) does not divide "
                f"by the mesh axis {mesh_axis} ({mesh.shape[mesh_axis]}); change config.mesh.{mesh_axis}"
            )
    return PartitionSpec(*spec)
