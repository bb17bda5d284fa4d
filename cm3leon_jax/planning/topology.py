"""The name of a pod: what it describes, and its devices as the compiler sees them.

v5p:8x8x8        one slice of TPUs, with the links that close its torus
v5e:16x16*2      two such slices, with the datacenter network between them
h100:32x8        32 hosts of 8 GPUs
"""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import dataclass
from typing import Any

from cm3leon_jax.accelerators import BY_NAME, Accelerator
from cm3leon_jax.errors import UserError

# What the GPU compiler asks of a device (XLA's GpuTargetConfigProto; values of xla/backends/gpu/target_config/specs).
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
_AMPERE = dict(
    capability=8, extension="NONE", cores=108, fpus=64, gigahertz=1.41, l2=41943040, shared=167936, optin=166912
)
_HOPPER = dict(
    capability=9,
    extension="ACCELERATED_FEATURES",
    cores=132,
    fpus=128,
    gigahertz=1.98,
    l2=52428800,
    shared=233472,
    optin=232448,
)
_GPU_TARGETS = {
    "a100": _GPU_TARGET.format(**_AMPERE, name="NVIDIA A100-SXM4-80GB", bandwidth=2039040000000, memory=85100068864),
    "h100": _GPU_TARGET.format(**_HOPPER, name="NVIDIA H100 80GB HBM3", bandwidth=3352320000000, memory=84942979072),
    "h200": _GPU_TARGET.format(**_HOPPER, name="NVIDIA H200", bandwidth=4800000000000, memory=151397597184),
}

# Twice the largest pods there are; millions would be laid out before anything is said.
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
        """As the user writes it."""
        shape = "x".join(map(str, self.sides))
        return f"{self.accelerator.name}:{shape}" + (f"*{self.num_slices}" if self.num_slices > 1 else "")

    @property
    def num_devices(self) -> int:
        """Chips in all slices."""
        return math.prod(self.sides) * self.num_slices

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Along which sides the links close to rings: a v5p slice from 4x4x4 on, a v5e or v6e side of 16.

        Without this the compiler sees an open mesh, and turns gathers over a whole slice into all-reduces.
        """
        if self.accelerator.name == "v5p":
            closed = min(self.sides) >= 4
            return (closed, closed, closed)
        first, second = (side == 16 for side in self.sides)
        return (first, second, False)

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
    """Reads a name such as those at the top of this file."""
    match = re.fullmatch(r"(\w+):(\d{1,6}(?:x\d{1,6})*)(?:\*(\d{1,6}))?", name)
    if match is None or match[1] not in BY_NAME:
        raise UserError(
            f"--topology={name}: write CHIP:SHAPE, such as v5p:8x8x8, v5e:16x16, v6e:16x16*2 (two slices) or h100:32x8 "
            f"(hosts x GPUs); the chips are {', '.join(BY_NAME)}"
        )
    accelerator, shape, slices = BY_NAME[match[1]], match[2], int(match[3] or 1)
    sides = tuple(int(side) for side in shape.split("x"))
    if slices < 1 or (slices > 1 and not accelerator.is_tpu):
        raise UserError(f"--topology={name}: {'*2 and more are slices of TPUs' if slices else 'at least one slice'}")
    if accelerator.name == "v5p":
        cubes = (
            len(sides) == 3
            and all(side % 4 == 0 and 4 <= side <= 24 for side in sides)
            and list(sides) == sorted(sides)
        )
        if shape not in _SMALL_CUBOIDS and not cubes:
            raise UserError(
                f"--topology={name}: a slice of v5p is {', '.join(_SMALL_CUBOIDS)}, or three rising multiples of 4 "
                "such as 4x4x4, 4x4x8, 8x8x8, 8x8x16"
            )
    elif accelerator.is_tpu:
        if shape not in _FLAT_SLICES:
            raise UserError(f"--topology={name}: a slice of {accelerator.name} is one of {', '.join(_FLAT_SLICES)}")
    elif len(sides) != 2 or not all(sides) or sides[1] > 8:
        raise UserError(f"--topology={name}: GPUs are HOSTSxGPUS with at most 8 GPUs a host, such as {match[1]}:4x8")
    found = Topology(accelerator, sides, slices)
    if found.num_devices > _MOST_DEVICES:
        raise UserError(f"--topology={name}: {found.num_devices} chips, and a plan is for at most {_MOST_DEVICES}")
    return found


def require_compiler(topology: Topology) -> None:
    """Refuses, with what to install, where the compiler of that chip is missing."""
    if topology.accelerator.is_tpu:
        module, extra, what = "libtpu", "plan", "the TPU compiler"
    else:
        module, extra, what = "jax_plugins.xla_cuda13", "plan-cuda13", "the GPU compiler (no GPU is needed)"
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise UserError(f"{what} is missing: pip install 'cm3leon_jax[{extra}]', or pip install -e '.[{extra}]' here")


def devices(topology: Topology) -> list[Any]:
    """The devices, as JAX's abstract ones: they compile and hold nothing."""
    from jax.experimental import topologies

    if topology.accelerator.is_tpu:
        shape = "x".join(map(str, topology.sides))
        small = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(topology.sides) == 1 else {}
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{topology.accelerator.name}:{shape}",
            num_slices=topology.num_slices,
            wrap=topology.wrap,
            **small,
        )
    else:
        hosts, gpus = topology.sides
        described = topologies.get_topology_desc(
            platform="cuda",
            topology_name=topology.accelerator.name,
            target_config=_GPU_TARGETS[topology.accelerator.name],
            topology=f"1x{hosts}x{gpus}",
        )
    return list(described.devices)


def coordinates(topology: Topology, device: Any) -> tuple[int, ...]:
    """Where a device is: (slice, place along each side of the torus), or (host, GPU of the host)."""
    if topology.accelerator.is_tpu:
        place = tuple(device.coords)[: len(topology.sides)]
        return (getattr(device, "slice_index", 0) if topology.num_slices > 1 else 0, *place)
    gpus = topology.sides[1]
    return (device.id // gpus, device.id % gpus)
