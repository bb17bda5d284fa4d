"""Pods by their shape, such as the user writes: chips, links, and the devices of their compiler.

v5p:8x8x8           one slice of TPUs, with the links that close its torus
v5p:4x8x8_twisted   the same with the torus twisted
v5e:16x16*2         two such slices, with the datacenter network between them
h100:32x8           32 hosts of 8 GPUs

`accelerator_types.py` has the names that Google and NVIDIA give them. Sources: docs.cloud.google.com/tpu/docs/v4, v5e,
v5p, v6e, tpu7x and types-topologies, read in 2026.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import importlib.util
import itertools
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
_BLACKWELL = (10, "ACCELERATED_FEATURES", 148, 128, 1.965, 132644864, 233472, 232448)
_GRACE_BLACKWELL = (10, "ACCELERATED_FEATURES", 152, 128, 2.062, 135528448, 233472, 232448)
_CHIP_FIELDS = ("capability", "extension", "cores", "fpus", "gigahertz", "l2", "shared", "optin")
_GPU_TARGETS = {
    name: _GPU_TARGET.format(
        **dict(zip(_CHIP_FIELDS, chip, strict=True)), name=product, bandwidth=bandwidth, memory=memory
    )
    for name, chip, product, bandwidth, memory in (
        ("a100", _AMPERE, "NVIDIA A100-SXM4-80GB", 2039040000000, 85100068864),
        ("h100", _HOPPER, "NVIDIA H100 80GB HBM3", 3352320000000, 84942979072),
        ("h200", _HOPPER, "NVIDIA H200", 4800000000000, 151397597184),
        ("b200", _BLACKWELL, "NVIDIA B200", 7672320000000, 191514411008),
        ("gb200", _GRACE_BLACKWELL, "NVIDIA GB200", 7928064000000, 197897748480),
    )
}

# Twice the largest pods there are.
_MOST_DEVICES = 1 << 17
# Chips of the largest slice.
_MOST_CHIPS = {"v4": 4096, "v5e": 256, "v5p": 6144, "v6e": 256, "tpu7x": 9216}
_FLAT_SLICES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_CUBOIDS = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
# Larger ones are made of cubes of so many chips; the published lists have none that is longer than 64 cubes.
_CUBE_SIDE = 4
_MOST_CUBES_IN_A_ROW = 64


@dataclass(frozen=True)
class Topology:
    """Chips of one kind and how they are linked: sides of a slice's torus, or (hosts, GPUs of a host)."""

    accelerator: Accelerator
    sides: tuple[int, ...]
    num_slices: int = 1
    is_twisted: bool = False

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.sides)) + ("_twisted" if self.is_twisted else "")
        return f"{self.accelerator.name}:{shape}" + (f"*{self.num_slices}" if self.num_slices > 1 else "")

    @property
    def num_chips(self) -> int:
        return math.prod(self.sides) * self.num_slices

    @property
    def num_devices(self) -> int:
        """JAX's devices: a chip is one, but a tpu7x is two."""
        return self.num_chips * self.accelerator.devices_per_chip

    @property
    def num_hosts(self) -> int:
        """Hosts as Cloud TPU makes them: of 4 chips, or of all of a v5e or v6e slice of up to 8 (GKE has two of 4)."""
        if not self.accelerator.is_tpu:
            return self.sides[0]
        chips = math.prod(self.sides)
        per_host = 4 if is_cuboid(self.accelerator) or chips > 8 else 8
        return max(1, chips // per_host) * self.num_slices

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Along which sides the links close to rings: a cuboid from 4x4x4 on, a v5e or v6e side of 16.

        Without this the compiler sees an open mesh, and turns gathers over a whole slice into all-reduces.
        """
        if is_cuboid(self.accelerator):
            return (min(self.sides) >= 4,) * 3
        return (self.sides[0] == 16, self.sides[1] == 16, False)

    def describe(self) -> str:
        """For people: `512 x v5p, torus of 8 x 8 x 8, 128 hosts`."""
        count = f"{self.num_chips} x {self.accelerator.name}"
        hosts = f"{self.num_hosts} host{'s' if self.num_hosts > 1 else ''}"
        if not self.accelerator.is_tpu:
            return f"{count}, {hosts} of {self.sides[1]}"
        closed = self.wrap[: len(self.sides)]
        kind = "torus" if all(closed) else "mesh, closed along its long side," if any(closed) else "open mesh"
        kind = f"twisted {kind}" if self.is_twisted else kind
        slices = f"{self.num_slices} slices, each a " if self.num_slices > 1 else ""
        return f"{count}, {slices}{kind} of {' x '.join(map(str, self.sides))}, {hosts}"


def is_cuboid(chip: Accelerator) -> bool:
    """Whether slices of these TPUs have three sides."""
    return chip.num_links == 6


def slice_sides(chip: Accelerator, num_chips: int) -> tuple[int, ...] | None:
    """Finds the shape of a slice of so many chips: where there are several, the one that is most like a cube."""
    if not is_cuboid(chip):
        return next((sides for sides in _FLAT_SLICES if math.prod(sides) == num_chips), None)
    small = ((1, 1, 1), *_SMALL_CUBOIDS) if chip.devices_per_chip > 1 else _SMALL_CUBOIDS
    for sides in small:
        if math.prod(sides) == num_chips:
            return sides
    cubes, rest = divmod(num_chips, _CUBE_SIDE**3)
    if rest or cubes < 1 or num_chips > _MOST_CHIPS[chip.name]:
        return None
    triples = (
        (first, second, cubes // (first * second))
        for first, second in itertools.combinations_with_replacement(range(1, math.isqrt(cubes) + 1), 2)
        if cubes % (first * second) == 0 and first <= second <= cubes // (first * second) <= _MOST_CUBES_IN_A_ROW
    )
    best = min(triples, key=lambda triple: (sum(triple), max(triple)), default=None)
    return tuple(_CUBE_SIDE * side for side in best) if best else None


def nearest_counts(chip: Accelerator, num_chips: int) -> list[int]:
    """Finds the numbers of chips next to one, from below and from above, of which there are slices or whole hosts."""
    if chip.is_tpu:
        counts = [count for count in range(1, _MOST_CHIPS[chip.name] + 1) if slice_sides(chip, count)]
    else:
        hosts = range(1, 2 + num_chips // chip.gpus_per_host)
        counts = [*range(1, chip.gpus_per_host), *(host * chip.gpus_per_host for host in hosts)]
    if num_chips in counts:
        return [num_chips]
    index = bisect.bisect_left(counts, num_chips)
    return counts[max(0, index - 1) : index + 1]


def host_sides(chip: Accelerator, num_gpus: int) -> tuple[int, int] | None:
    """Finds (hosts, GPUs of a host) of so many GPUs; only one host may have less than all of its GPUs."""
    if num_gpus < chip.gpus_per_host:
        return (1, num_gpus) if num_gpus else None
    hosts, rest = divmod(num_gpus, chip.gpus_per_host)
    return None if rest else (hosts, chip.gpus_per_host)


def parse(name: str) -> Topology:
    """Parses a name such as those at the top of this file. Raises a `UserError` if there is no such pod."""
    match = re.fullmatch(r"(\w+):(\d{1,6}(?:x\d{1,6})*)(_twisted)?(?:\*(\d{1,6}))?", name)
    if match is None or match[1] not in BY_NAME:
        raise UserError(
            f"--topology={name}: write CHIP:SHAPE, such as v5p:8x8x8, v5e:16x16, v6e:16x16*2 (two slices) or h100:32x8 "
            f"(hosts x GPUs), or an accelerator type, such as v5p-1024; the chips are {', '.join(BY_NAME)}"
        )
    sides = tuple(map(int, match[2].split("x")))
    found = Topology(BY_NAME[match[1]], sides, int(match[4] or 1), match[3] is not None)
    if mistake := _mistake(found):
        raise UserError(f"--topology={name}: {mistake}")
    return found


def _mistake(found: Topology) -> str | None:
    """Says why there is no such pod, and which are near."""
    chip, sides, slices = found.accelerator, found.sides, found.num_slices
    if slices < 1 or (slices > 1 and not chip.is_tpu):
        return "*2 and more are slices of TPUs" if slices else "at least one slice"
    if chip.is_tpu:
        mistake = _mistake_of_slice(found)
    else:
        is_right = len(sides) == 2 and all(sides) and sides[1] <= chip.gpus_per_host
        rule = f"GPUs are HOSTSxGPUS with at most {chip.gpus_per_host} GPUs per host"
        mistake = None if is_right else f"{rule}, such as {_nearest(found)}"
    if mistake is None and found.num_devices > _MOST_DEVICES:
        return f"{found.num_devices} devices, and a plan is for at most {_MOST_DEVICES}"
    return mistake


def _mistake_of_slice(found: Topology) -> str | None:
    chip, sides = found.accelerator, found.sides
    if not is_cuboid(chip):
        if found.is_twisted or sides not in _FLAT_SLICES:
            listed = ", ".join("x".join(map(str, one)) for one in _FLAT_SLICES)
            return f"a slice of {chip.name} is one of {listed}; the nearest: {_nearest(found)}"
        return None
    of_cubes = (
        len(sides) == 3 and all(side and side % _CUBE_SIDE == 0 for side in sides) and list(sides) == sorted(sides)
    )
    fits = of_cubes and math.prod(sides) <= _MOST_CHIPS[chip.name]
    if not fits and (math.prod(sides) > 32 or slice_sides(chip, math.prod(sides)) != sides):
        small = ", ".join("x".join(map(str, one)) for one in _SMALL_CUBOIDS)
        return (
            f"a slice of {chip.name} is {small}, or three rising multiples of 4 with at most {_MOST_CHIPS[chip.name]} "
            f"chips; the nearest: {_nearest(found)}"
        )
    if found.is_twisted and not (of_cubes and 2 * sides[0] == sides[2] and sides[1] in (sides[0], sides[2])):
        return "a twisted torus has sides of A, A, 2A or A, 2A, 2A, such as 4x4x8_twisted or 4x8x8_twisted"
    return None


def _nearest(found: Topology) -> str:
    """Lists the shapes next to a wrong one by the number of chips."""
    chip = found.accelerator
    counts = nearest_counts(chip, math.prod(found.sides))
    shapes = [(slice_sides if chip.is_tpu else host_sides)(chip, count) for count in counts]
    return " or ".join(f"{chip.name}:{'x'.join(map(str, shape))}" for shape in shapes if shape)


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
        if name == "v4":
            # The two cores of a chip as one device, as a v4 runs JAX; the compiler takes a v5p so by itself.
            arguments["chip_config_name"] = "megacore"
        if math.prod(sides) == 1:
            arguments["chips_per_host_bounds"] = (1, 1, 1)
        platform, name = "tpu", dataclasses.replace(topology, num_slices=1).name
    else:
        arguments = {"target_config": _GPU_TARGETS[name], "topology": f"1x{sides[0]}x{sides[1]}"}
        platform = "cuda"
    return list(topologies.get_topology_desc(platform=platform, topology_name=name, **arguments).devices)


def coordinates(topology: Topology, device: Any) -> tuple[int, ...]:
    """Returns (slice, position along each side of the torus) of a device, or (NVLink switch, host, GPU of the host)."""
    if topology.accelerator.is_tpu:
        position = tuple(device.coords)[: len(topology.sides)]
        return (getattr(device, "slice_index", 0) if topology.num_slices > 1 else 0, *position)
    host, gpu = divmod(device.id, topology.sides[1])
    return host // topology.accelerator.hosts_per_switch, host, gpu
