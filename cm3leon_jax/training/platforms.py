"""What a platform needs so that a step runs well: options of XLA per kind of chip, and of glibc on a CPU."""

from __future__ import annotations

import ctypes
import platform

from cm3leon_jax.accelerators import host_has_gpu, host_has_tpu

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
_OPTIONS: dict[str, dict[str, bool]] = {
    "TPU v5": _SPARSE_CORE_COLLECTIVES,
    "TPU v6 lite": _SPARSE_CORE_COLLECTIVES,
}

# Parameters of glibc's mallopt(3).
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1


def compiler_options(device_kind: str, num_devices: int) -> dict[str, bool]:
    """XLA's options for a step on so many chips; one alone has no collectives."""
    return _OPTIONS.get(device_kind, {}) if num_devices > 1 else {}


def keep_freed_memory() -> None:
    """Has glibc keep what is freed on a host without accelerators, where every step allocates the same buffers again.

    One arena, no separate maps, nothing given back. To be called before JAX's first use of a device: the threads that
    it starts keep the arenas they have. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc" and not (host_has_gpu() or host_has_tpu()):
        library = ctypes.CDLL(None)
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            library.mallopt(option, value)
