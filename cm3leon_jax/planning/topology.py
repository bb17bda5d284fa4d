"""Pods by name, such as the user writes: chips, links, and the devices of their compiler.

v5p:8x8x8        one slice of TPUs, with the links that close its torus
v5e:16x16*2      two such slices, with the datacenter network between them
h100:32x8        32 hosts of 8 GPUs
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
from dataclasses import dataclass
from typing import Any

from cm3leon_jax.accelerators import BY_NAME, Accelerator
from cm3leon_jax.errors import UserError

# A device for the GPU compiler: XLA's GpuTargetConfigProto, values of xla/backends/gpu/target_config/specs.
_GPU_TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: {capability} feature_extension: {extension} }}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {gigahertz}
  memory_bandwidth: {bandwidth} device_memory_size: {memory} l2_cache_size: {l2}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
_AMPERE = (8, "NONE", 108, 64, 1.41, 41943040, 167936, 166912)
_HOPPER = (9, "ACCELERATED_FEATURES", 132, 128, 1.98, 52428800, 233472, 232448)
_CHIP_FIELDS = ("capability", "extension", "cores", "fpus", "gigahertz", "l2", "shared", "optin")
_GPU_TARGETS = {
    name: _GPU_TARGET.format(
        **dict(zip(_CHIP_FIELDS, chip, strict=True)), name=product, bandwidth=bandwidth, memory=memory
    )
    for name, chip, product, bandwidth, memory in (
        ("a100", _AMPERE, "NVIDIA A100-SXM4-80GB", 2039040000000, 85100068864),
        ("h100", _HOPPER, "NVIDIA H100 80GB HBM3", 3352320000000, 84942979072),
        ("h200", _HOPPER, "NVIDIA H200", 4800000000000, 151397597184),
    )
}

# Twice the largest pods there are.
_MOST_DEVICES = 1 << 17
_FLAT_SLICES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBOIDS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


@dataclass(frozen=True)
class Topology:
    """Chips of one kind and how they are linked: sides of a slice's torus, or (hosts, GPUs of a host)."""

    accelerator: Accelerator
    sides: tuple[int, ...]
    num_slices: int = 1

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.sides))
        return f"{self.accelerator.name}:{shape}" + (f"*{self.num_slices}" if self.num_slices > 1 else "")

    @property
    def num_devices(self) -> int:
        return math.prod(self.sides) * self.num_slices

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Along which sides the links close to rings: a v5p slice from 4x4x4 on, a v5e or v6e side of 16.

        Without this the compiler sees an open mesh, and turns gathers over a whole slice into all-reduces.
        """
        if self.accelerator.name == "v5p":
            return (min(self.sides) >= 4,) * 3
        return (self.sides[0] == 16, self.sides[1] == 16, False)

    def describe(self) -> str:
        """For people: `512 x v5p, torus of 8 x 8 x 8`."""
        count = f"{self.num_devices} x {self.accelerator.name}"
        if not self.accelerator.is_tpu:
            return f"{count}, {self.sides[0]} hosts of {self.sides[1]}"
        closed = self.wrap[: len(self.sides)]
        kind = "torus" if all(closed) else "mesh, closed along its long side," if any(closed) else "open mesh"
        slices = f"{self.num_slices} slices, each a " if self.num_slices > 1 else ""
        return f"{count}, {slices}{kind} of {' x '.join(map(str, self.sides))}"


def parse(name: str) -> Topology:
    """Parses a name such as those at the top of this file. Raises a `UserError` if there is no such pod."""
    match = re.fullmatch(r"(\w+):(\d{1,6}(?:x\d{1,6})*)(?:\*(\d{1,6}))?", name)
    if match is None or match[1] not in BY_NAME:
        raise UserError(
            f"--topology={name}: write CHIP:SHAPE, such as v5p:8x8x8, v5e:16x16, v6e:16x16*2 (two slices) or h100:32x8 "
            f"(hosts x GPUs); the chips are {', '.join(BY_NAME)}"
        )
    found = Topology(BY_NAME[match[1]], tuple(map(int, match[2].split("x"))), int(match[3] or 1))
    if mistake := _mistake(found, match[2]):
        raise UserError(f"--topology={name}: {mistake}")
    return found


def _mistake(found: Topology, shape: str) -> str | None:
    """Says why there is no such pod."""
    chip, sides, slices = found.accelerator, found.sides, found.num_slices
    is_cuboid = len(sides) == 3 and all(side in range(4, 25, 4) for side in sides) and list(sides) == sorted(sides)
    if slices < 1 or (slices > 1 and not chip.is_tpu):
        return "*2 and more are slices of TPUs" if slices else "at least one slice"
    if chip.name == "v5p" and shape not in _SMALL_CUBOIDS and not is_cuboid:
        return (
            f"a slice of v5p is {', '.join(_SMALL_CUBOIDS)}, or three rising multiples of 4 such as 4x4x4, 4x4x8, "
            "8x8x8, 8x8x16"
        )
    if chip.is_tpu and chip.name != "v5p" and shape not in _FLAT_SLICES:
        return f"a slice of {chip.name} is one of {', '.join(_FLAT_SLICES)}"
    if not chip.is_tpu and (len(sides) != 2 or not all(sides) or sides[1] > 8):
        return f"GPUs are HOSTSxGPUS with at most 8 GPUs per host, such as {chip.name}:4x8"
    if found.num_devices > _MOST_DEVICES:
        return f"{found.num_devices} chips, and a plan is for at most {_MOST_DEVICES}"
    return None


def require_compiler(topology: Topology) -> None:
    """Raises a UserError, with what to install, where the compiler of that chip is missing."""
    module, extra, what = "jax_plugins.xla_cuda13", "plan-cuda13", "the GPU compiler (no GPU is needed)"
    if topology.accelerator.is_tpu:
        module, extra, what = "libtpu", "plan", "the TPU compiler"
    found = None
    with contextlib.suppress(ModuleNotFoundError):
        found = importlib.util.find_spec(module)
    if found is None:
        raise UserError(f"{what} is missing: pip install 'cm3leon_jax[{extra}]', or pip install -e '.[{extra}]' here")


def devices(topology: Topology) -> list[Any]:
    """Makes the devices, JAX's abstract ones: they compile and hold nothing."""
    from jax.experimental import topologies

    name, sides = topology.accelerator.name, topology.sides
    if topology.accelerator.is_tpu:
        arguments: dict[str, Any] = {"num_slices": topology.num_slices, "wrap": topology.wrap}
        if math.prod(sides) == 1:
            arguments["chips_per_host_bounds"] = (1, 1, 1)
        platform, name = "tpu", f"{name}:{'x'.join(map(str, sides))}"
    else:
        arguments = {"target_config": _GPU_TARGETS[name], "topology": f"1x{sides[0]}x{sides[1]}"}
        platform = "cuda"
    return list(topologies.get_topology_desc(platform=platform, topology_name=name, **arguments).devices)


def coordinates(topology: Topology, device: Any) -> tuple[int, ...]:
    """Returns (slice, position along each side of the torus) of a device, or (host, GPU of the host)."""
    if topology.accelerator.is_tpu:
        position = tuple(device.coords)[: len(topology.sides)]
        return (getattr(device, "slice_index", 0) if topology.num_slices > 1 else 0, *position)
    return divmod(device.id, topology.sides[1])
