"""Options of XLA per kind of chip (models/cpu.py has what a CPU needs)."""

from __future__ import annotations

# What makes a TPU's compiler (libtpu 0.0.52) reduce-scatter the gradients of parameters that are sharded over a whole
# slice; without it each becomes an all-reduce of the full weight. Gathers and scatters then run on the sparse cores,
# next to the matrix products. It needs more memory. A v5e has no such cores: `sharding.make_mesh` helps there.
_SPARSE_CORE_COLLECTIVES = {
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": False,
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
    "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": True,
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
    "xla_tpu_use_tc_device_shape_on_sc": True,
}

# By the name that JAX has for the chip ("TPU v5" is the v5p).
_OPTIONS = dict.fromkeys(("TPU v5", "TPU v6 lite"), _SPARSE_CORE_COLLECTIVES)


def compiler_options(device_kind: str, num_devices: int) -> dict[str, bool]:
    """XLA's options for a step on so many chips; one alone has no collectives."""
    return _OPTIONS.get(device_kind, {}) if num_devices > 1 else {}
