"""What chips send one another in a compiled step: read from the optimized program.

The same collective is written in many ways, of which each chip's compiler has its own: plain and synchronous; a pair
`-start` and `-done`; a call that runs on a TPU's SparseCore; on v5e a fusion that starts it and others that carry it on
beside their products; a reduce-scatter as a fusion around an all-reduce; between slices, a send and a receive.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cm3leon_jax.planning import hlo
from cm3leon_jax.planning.hlo import Computation, Instruction, Program

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")
# What can hide a collective must itself take time: an output of this many bytes, or a product or a kernel.
_LEAST_WORK_BYTES = 1 << 20
_WORK = ("fusion", "convolution", "dot", "custom-call", "while", "call")


@dataclass(frozen=True)
class Collective:
    """One collective of the program, as a chip takes part in it."""

    kind: str
    # The element type and the shape of each array before it, on one chip.
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    # Bytes of those before it.
    operand_bytes: int
    group_size: int
    # Mesh axes along which chips of a group differ.
    axes: tuple[str, ...]
    # How often it runs in a step, and where: the loops around it, outermost first.
    runs: int
    loops: tuple[str, ...]
    op_name: str
    # Whether it is started and awaited apart, and whether there is work between.
    is_asynchronous: bool
    is_hidden: bool
    # Devices of its first group, as places in the flattened mesh.
    group: tuple[int, ...] = ()
    # Between slices, over the datacenter network.
    is_between_slices: bool = False

    @property
    def full_bytes(self) -> int:
        """Bytes of the whole array: what a gather ends with, and what a reduction starts from."""
        return self.operand_bytes * (self.group_size if self.kind == "all-gather" else 1)

    @property
    def sent_bytes(self) -> float:
        """Bytes that a chip sends each time, by the algorithms that send least."""
        others = (self.group_size - 1) / max(1, self.group_size)
        if self.kind in ("all-gather", "reduce-scatter", "all-to-all"):
            return self.full_bytes * others
        if self.kind == "all-reduce":
            return 2 * self.full_bytes * others
        return float(self.operand_bytes)


def find(text: str, mesh: dict[str, int]) -> list[Collective]:
    """All collectives of an optimized program that runs on a mesh of these axes; loops count as often as they run."""
    program = hlo.parse(text)
    found = _walk(program, program.computations[program.entry], mesh, 1, (), None)
    return [collective for collective in found if collective.group_size > 1]


def _walk(
    program: Program,
    computation: Computation,
    mesh: dict[str, int],
    runs: int,
    loops: tuple[str, ...],
    hidden: bool | None,
) -> Iterator[Collective]:
    """`hidden`: None in what runs synchronously; else whether there is work beside the call that runs this."""
    carried: set[str] = set()
    for place, instruction in enumerate(computation.instructions):
        opcode = instruction.opcode
        kind = opcode.removesuffix("-start")
        inner = [program.computations[name] for name in instruction.called("calls", "called_computations")]
        if opcode == "while":
            body = program.computations[instruction.called("body")[0]]
            times = hlo.trip_count(program, computation, instruction) or 1
            yield from _walk(program, body, mesh, runs * times, (*loops, instruction.op_name), None)
        elif opcode == "conditional":
            branches = instruction.called("branch_computations", "true_computation", "false_computation")
            for branch in branches:
                yield from _walk(program, program.computations[branch], mesh, runs, loops, None)
        elif kind in KINDS:
            apart = opcode.endswith("-start") and '"is_sync":true' not in instruction.attributes
            beside = _has_work_beside(program, computation, place) if apart else hidden
            yield _collective(kind, computation, instruction, mesh, runs, loops, beside)
        elif opcode == "send" and "xla_megascale_runtime" in instruction.attributes:
            yield _between_slices(program, computation, place, mesh, runs, loops)
        elif opcode == "async-start":
            beside = _has_work_beside(program, computation, place)
            for called in inner:
                yield from _walk(program, called, mesh, runs, loops, beside)
        elif opcode == "fusion" and inner[0].name.startswith("all-reduce-scatter"):
            reduction = next(i for i in inner[0].instructions if i.opcode == "all-reduce")
            yield _collective("reduce-scatter", inner[0], reduction, mesh, runs, loops, hidden, instruction.op_name)
        elif opcode == "fusion" and _carries_a_collective(inner[0]):
            # Each fusion that carries it on repeats it, under the same channel.
            for collective in _walk(program, inner[0], mesh, runs, loops, True):
                channel = _channel(inner[0])
                if channel not in carried:
                    carried.add(channel)
                    yield collective
        elif opcode in ("fusion", "call", "custom-call"):
            for called in inner:
                yield from _walk(program, called, mesh, runs, loops, hidden)


def _carries_a_collective(computation: Computation) -> bool:
    has_part = computation.name.startswith("async_collective_fusion") or any(
        "AsyncCollective" in i.attributes for i in computation.instructions if i.opcode == "custom-call"
    )
    return has_part and any(i.opcode in KINDS for i in computation.instructions)


def _channel(computation: Computation) -> str:
    collective = next(i for i in computation.instructions if i.opcode in KINDS)
    match = re.search(r"channel_id=(\d+)", collective.attributes)
    return match[1] if match else collective.name


def _has_work_beside(program: Program, computation: Computation, start: int) -> bool:
    """Whether work is scheduled between an asynchronous start and what awaits it."""
    instructions = computation.instructions
    names, last_given = {instructions[start].name}, start
    for place in range(start + 1, len(instructions)):
        instruction = instructions[place]
        if not names & set(instruction.operands):
            continue
        if instruction.opcode.endswith("-done"):
            return any(_is_work(program, between) for between in instructions[last_given + 1 : place])
        if instruction.opcode.endswith("-update"):
            # Only with its operands does it begin.
            names, last_given = {instruction.name}, place
    # Awaited elsewhere, as in the next turn of a loop.
    return True


def _is_work(program: Program, instruction: Instruction) -> bool:
    if instruction.opcode not in _WORK:
        return False
    inner = [program.computations[name] for name in instruction.called("calls")]
    if any(i.opcode in KINDS for computation in inner for i in computation.instructions):
        return False
    heavy = instruction.opcode != "fusion" or any(
        i.opcode in ("convolution", "dot") for computation in inner for i in computation.instructions
    )
    return heavy or hlo.num_bytes(instruction.type) >= _LEAST_WORK_BYTES


def _collective(
    kind: str,
    computation: Computation,
    instruction: Instruction,
    mesh: dict[str, int],
    runs: int,
    loops: tuple[str, ...],
    hidden: bool | None,
    op_name: str = "",
) -> Collective:
    operands = [computation.by_name[name].type for name in instruction.operands]
    group = _first_group(instruction.attributes, math.prod(mesh.values()))
    return Collective(
        kind=kind,
        arrays=tuple(array for operand in operands for array in hlo.arrays(operand)),
        operand_bytes=sum(map(hlo.num_bytes, operands)),
        group_size=len(group),
        axes=_axes(group, mesh),
        runs=runs,
        loops=loops,
        op_name=instruction.op_name or op_name or (loops[-1] if loops else ""),
        is_asynchronous=hidden is not None,
        is_hidden=bool(hidden),
        group=group,
    )


def _between_slices(
    program: Program,
    computation: Computation,
    place: int,
    mesh: dict[str, int],
    runs: int,
    loops: tuple[str, ...],
) -> Collective:
    """A send to the runtime of the datacenter network; what it sends is reduced or gathered over the slices."""
    send = computation.instructions[place]
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
    targets = re.search(r'_xla_megascale_target="\{([\d,]+)\}', send.attributes)
    operand = computation.by_name[send.operands[0]].type
    return Collective(
        kind=kind[1].lower().replace("_", "-") if kind else "send",
        arrays=tuple(hlo.arrays(operand)),
        operand_bytes=hlo.num_bytes(operand),
        group_size=len(targets[1].split(",")) if targets else 2,
        # Slices differ along the outermost axis alone.
        axes=tuple(mesh)[:1],
        runs=runs,
        loops=loops,
        op_name=send.op_name or (loops[-1] if loops else ""),
        is_asynchronous=True,
        is_hidden=_has_work_before_receiving(program, computation, place),
        is_between_slices=True,
    )


def _has_work_before_receiving(program: Program, computation: Computation, place: int) -> bool:
    """Whether work is scheduled between a send and the end of the receive that answers it."""
    instructions = computation.instructions
    rendezvous = re.search(r'_xla_host_transfer_rendezvous="[^"]*"', instructions[place].attributes)
    answers = {i.name for i in instructions if i.opcode == "recv" and rendezvous and rendezvous[0] in i.attributes}
    for later in range(place + 1, len(instructions)):
        if instructions[later].opcode == "recv-done" and answers & set(instructions[later].operands):
            return any(_is_work(program, between) for between in instructions[place + 1 : later])
    return True


def _first_group(attributes: str, num_devices: int) -> tuple[int, ...]:
    """The devices of the first group, in any of the ways that XLA writes groups; of a permutation, the first ring."""
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", attributes)
    if pairs:
        return _chain({int(source): int(target) for source, target in re.findall(r"\{(\d+),(\d+)\}", pairs[1])})
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return tuple(map(int, listed[1].split(",")))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        sizes = [int(size) for size in iota[3].split(",")]
        order = [int(axis) for axis in iota[4].split(",")] if iota[4] else list(range(len(sizes)))
        return _iota_group(int(iota[2]), sizes, order)
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if mesh:
        sizes = [int(size) for size in re.findall(r"=(\d+)", mesh[1])]
        names = re.findall(r"'([^']+)'=", mesh[1])
        return _mesh_group(names, sizes, mesh[2])
    return tuple(range(num_devices))


def _chain(targets: dict[int, int]) -> tuple[int, ...]:
    first = min(targets, default=0)
    chain, device = [first], targets.get(first, first)
    while device not in chain:
        chain.append(device)
        device = targets.get(device, first)
    return tuple(chain)


def _iota_group(group_size: int, sizes: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """The first `group_size` entries of arange(product of sizes), reshaped to `sizes` and transposed to `order`."""
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    group = []
    for number in range(group_size):
        device = 0
        for axis in reversed(order):
            number, place = divmod(number, sizes[axis])
            device += place * strides[axis]
        group.append(device)
    return tuple(group)


def _mesh_group(names: list[str], sizes: list[int], chosen: str) -> tuple[int, ...]:
    """The first group over the chosen axes, or parts of axes: `'a'` or `'a':(before)size`."""
    group = [0]
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen):
        axis = names.index(name)
        stride = math.prod(sizes[axis + 1 :])
        ways = int(size or sizes[axis])
        stride *= sizes[axis] // (int(before or 1) * ways)
        group = [device + place * stride for device in group for place in range(ways)]
    return tuple(group)


def _axes(group: Sequence[int], mesh: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which devices of a group differ."""
    sizes = list(mesh.values())
    found = []
    for axis, name in enumerate(mesh):
        stride = math.prod(sizes[axis + 1 :])
        if len({device // stride % sizes[axis] for device in group}) > 1:
            found.append(name)
    return tuple(found)


def merged(collectives: Sequence[Collective]) -> list[Collective]:
    """Equal collectives as one, with the sum of their runs; those that send most first."""
    sums: dict[Collective, int] = {}
    for collective in collectives:
        key = replace(collective, runs=0)
        sums[key] = sums.get(key, 0) + collective.runs
    whole = [replace(key, runs=runs) for key, runs in sums.items()]
    return sorted(whole, key=lambda collective: -collective.sent_bytes * collective.runs)


def full_weight_reductions(
    collectives: Sequence[Collective], weights: dict[str, int]
) -> list[tuple[Collective, tuple[str, ...]]]:
    """All-reduces over fsdp of whole parameters, which would be gathers or reduce-scatters of a share: a fault.

    Args:
      collectives: of a compiled step.
      weights: elements of each parameter of a layer, as if fsdp did not split it.

    Returns:
      Each such all-reduce with the names of the parameters that have as many elements.
    """
    faults = []
    for collective in collectives:
        if collective.kind != "all-reduce" or "fsdp" not in collective.axes:
            continue
        sizes = {math.prod(shape) for _, shape in collective.arrays}
        names = tuple(name for name, size in weights.items() if size in sizes)
        if names:
            faults.append((collective, names))
    return faults
