"""The device mesh, and one table from the logical names of axes to the axes of the mesh.

replica   data parallel: different data, a copy of every parameter (slices, hosts, or groups of chips)
fsdp      fully sharded data parallel (ZeRO-3, arXiv 1910.02054): different data, a shard of every parameter
tensor    tensor parallel (arXiv 1909.08053) in a layer, sequence parallel (arXiv 2205.05198) between layers
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from cm3leon_jax.errors import UserError
from cm3leon_jax.models.config import MeshConfig

MESH_AXES = ("replica", "fsdp", "tensor")
# Axes whose devices hold different rows of a batch.
BATCH_AXES = ("replica", "fsdp")

Rules = Mapping[str, str | tuple[str, ...] | None]

# Parameters are sharded over "fsdp" along the model dimension, over "tensor" along heads, feed-forward or vocabulary;
# activations over the batch, and over "tensor" along the same or, between layers, along the sequence.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "layers": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "ffn": "tensor",
    "head": None,
    "position": None,
    "batch": BATCH_AXES,
    "sequence": "tensor",
}

# A decoding step reads every weight once, for a few tokens: weights are sharded where the work is, and never gathered.
DECODING_RULES = RULES | {"embed": None}

BATCH_SPEC = PartitionSpec(BATCH_AXES)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the devices (all by default) that follows their network; `replica` goes across slices first."""
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    sizes = _mesh_sizes(config, len(devices), slices, devices[0].device_kind)
    if slices > 1:
        inside = (sizes[0] // slices, *sizes[1:])
        grid = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _mesh_sizes(config: MeshConfig, num_devices: int, num_slices: int, device_kind: str) -> tuple[int, ...]:
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    if sizes["replica"] is None:
        sizes["replica"] = num_slices * _replicas_per_slice(num_devices // num_slices, device_kind)
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"config.mesh: only one of {', '.join(MESH_AXES)} may be -1, but {' and '.join(free)} are")
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if free and fixed > 0:
        sizes[free[0]] = num_devices // fixed
    if int(np.prod(list(sizes.values()))) != num_devices:
        shape = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise UserError(f"config.mesh: {shape} does not make {num_devices} devices; change one of the sizes")
    if sizes["replica"] % num_slices:
        raise UserError(
            f"config.mesh.replica {sizes['replica']} does not divide among {num_slices} slices: parameters are "
            f"sharded inside a slice alone, so take a multiple of {num_slices}"
        )
    return tuple(sizes.values())


def _replicas_per_slice(num_devices: int, device_kind: str) -> int:
    """Copies of the parameters in a slice by default: the fewest with which its gradients are reduce-scattered.

    Over a whole v5e slice of 64 chips or more the TPU's compiler (libtpu 0.0.52) makes an all-reduce of every weight's
    gradient; over a half of it, it does not. The other chips have compiler options against it (training/platforms.py).
    """
    return 2 if device_kind == "TPU v5 lite" and num_devices >= 64 else 1


def platform() -> str:
    """What the mesh of the context runs on: "cpu", "gpu", "tpu"; empty without a mesh."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else ""


def with_logical_constraint(x: Array, *logical_axes: str | None) -> Array:
    """Shards an activation over the context's mesh as RULES say; no-op without a mesh, or where nothing divides."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    named = zip(logical_axes, x.shape, strict=True)
    spec = [_axes_that_divide(RULES[axis] if axis else None, size, mesh.shape) for axis, size in named]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def _axes_that_divide(
    mesh_axes: str | tuple[str, ...] | None, size: int, sizes: Mapping[str, int]
) -> str | tuple[str, ...] | None:
    num_parts = int(
        np.prod([sizes[axis] for axis in ((mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ())])
    )
    return mesh_axes if size % num_parts == 0 else None


def check_batch_divides(batch_size: int, mesh: Mesh, num_microbatches: int = 1) -> None:
    """Refuses a batch that does not give every data-parallel device as many sequences, in every microbatch."""
    num_parts = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    if batch_size % (num_parts * num_microbatches):
        parts = f" and {num_microbatches} microbatches" if num_microbatches > 1 else ""
        raise UserError(
            f"config.batch.batch_size {batch_size} does not divide by the size {num_parts} of the mesh axes "
            f"{' and '.join(BATCH_AXES)}{parts}: take a multiple of {num_parts * num_microbatches}, "
            "or change config.mesh"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH_SPEC)


def global_array(array: Shaped[np.ndarray, "..."], sharding: NamedSharding) -> Shaped[Array, "..."]:
    """An array on the devices of all processes, each of which has the whole of it: every device takes its part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def process_local_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """The rows of a batch on the devices of this process, in order."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for index in held if index for row in range(batch_size)[index[0]]})


def on_mesh(batch: Any, mesh: Mesh) -> Any:
    """The arrays of a global batch, from those of every process with its own rows (`process_local_rows`)."""
    num_parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    num_local = len(process_local_rows(num_parts, mesh))

    def put(rows: Shaped[np.ndarray, "b ..."]) -> Shaped[Array, "B ..."]:
        shape = (len(rows) // num_local * num_parts, *rows.shape[1:])
        return jax.make_array_from_process_local_data(batch_sharding(mesh), rows, shape)

    return jax.tree.map(put, batch)


def cache_sharding(num_rows: int, mesh: Mesh) -> NamedSharding:
    """The sharding of keys and values, [B K S Dh]; too few rows to shard are replicated."""
    return NamedSharding(mesh, PartitionSpec(_axes_that_divide(BATCH_AXES, num_rows, mesh.shape), RULES["heads"]))


def parameter_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a parameter, or of another array of a state, given its path in a tree."""
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def name_of_array(path: tuple[Any, ...]) -> str:
    """The name of a parameter, given the path of its array, which is the value of a variable."""
    return parameter_name(path).removesuffix(".value")


def shardings(abstract: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """The sharding of every array of a training state, in the same tree.

    Parameters, and the optimizer's moments, which have the same shapes, follow `rules`; everything else is replicated.

    Raises:
      UserError: names the parameter, its dimension and the mesh axis where a dimension does not divide.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        if not jax.tree.leaves(leaf):
            # A parameter without this moment: another part of the optimizer updates it.
            return leaf
        return leaf.replace(NamedSharding(mesh, _parameter_spec(parameter_name(path), leaf, mesh, rules)))

    return jax.tree_util.tree_map_with_path(sharding, abstract, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _parameter_spec(name: str, parameter: nnx.Variable, mesh: Mesh, rules: Rules) -> PartitionSpec:
    axes = parameter.get_metadata("logical_axes")
    shape = parameter.get_value().shape
    if len(shape) == len(axes) + 1:
        # Stacked layers have one axis more than their layer named.
        axes = ("layers", *axes)
    spec = [rules[axis] for axis in axes]
    for dimension, (axis, mesh_axis, size) in enumerate(zip(axes, spec, shape, strict=True)):
        if mesh_axis and size % mesh.shape[mesh_axis]:
            raise UserError(
                f"parameter {name} cannot be sharded: its dimension {dimension} ({axis}, {size}) does not divide "
                f"by the mesh axis {mesh_axis} ({mesh.shape[mesh_axis]}); change config.mesh.{mesh_axis}"
            )
    return PartitionSpec(*spec)
