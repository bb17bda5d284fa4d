"""Collectives of a compiled step, from the optimized program, in the ways in which the compilers write them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cm3leon_jax.planning import hlo
from cm3leon_jax.planning.hlo import Computation, HloProgram, Instruction

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")
# Work that hides a collective takes time itself: a matmul or a kernel, or an output of this many bytes.
_LEAST_WORK_BYTES = 1 << 20
_WORK = ("fusion", "convolution", "dot", "custom-call", "while", "call")


@dataclass(frozen=True)
class Collective:
    """One collective of the program, as seen by a chip of its first group."""

    kind: str
    # Element type and shape of each operand, on one chip.
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    operand_bytes: int
    # Runs per step, and the loops around it, outermost first.
    runs: int
    loops: tuple[str, ...]
    op_name: str
    # Devices of its first group, as indices into the flattened mesh, and the mesh axes along which they differ.
    group: tuple[int, ...] = ()
    group_size: int = 1
    axes: tuple[str, ...] = ()
    # Whether start and end are separate, and whether work is scheduled between them.
    is_asynchronous: bool = False
    is_hidden: bool = False
    # Over the datacenter network.
    is_between_slices: bool = False

    @property
    def full_bytes(self) -> int:
        """Bytes of the whole array: the result of a gather, or the operand of a reduction."""
        return self.operand_bytes * (self.group_size if self.kind == "all-gather" else 1)

    @property
    def sent_bytes(self) -> float:
        """Bytes that a chip sends per run, by the algorithms that send least."""
        others = (self.group_size - 1) / max(1, self.group_size)
        if self.kind in ("all-gather", "reduce-scatter", "all-to-all"):
            return self.full_bytes * others
        if self.kind == "all-reduce":
            return 2 * self.full_bytes * others
        return float(self.operand_bytes)


def find(text: str, mesh: dict[str, int]) -> list[Collective]:
    """Finds all collectives of an optimized program for a mesh of these axes; `runs` includes the loops around them."""
    program = hlo.parse(text)
    entry = program.computations[program.entry]
    return [one for one in _Scope(program, entry, mesh, 1, (), None).collectives() if one.group_size > 1]


@dataclass(frozen=True)
class _Scope:
    """A computation, and how it is run."""

    program: HloProgram
    computation: Computation
    mesh: dict[str, int]
    runs: int
    loops: tuple[str, ...]
    # None where it runs synchronously; else whether there is work next to the call that runs it.
    is_hidden: bool | None

    def enter(self, name: str, **changes: Any) -> Iterator[Collective]:
        """Yields the collectives of a called computation."""
        return replace(self, computation=self.program.computations[name], **changes).collectives()

    def collectives(self) -> Iterator[Collective]:
        """Yields every collective, each in the form in which its compiler writes it."""
        carried: set[str] = set()
        for position, instruction in enumerate(self.computation.instructions):
            opcode = instruction.opcode
            kind = opcode.removesuffix("-start")
            names = instruction.called("calls", "called_computations")
            if opcode == "while":
                times = hlo.trip_count(self.program, self.computation, instruction) or 1
                loops = (*self.loops, instruction.op_name)
                yield from self.enter(
                    instruction.called("body")[0], runs=self.runs * times, loops=loops, is_hidden=None
                )
            elif opcode == "conditional":
                for name in instruction.called("branch_computations", "true_computation", "false_computation"):
                    yield from self.enter(name, is_hidden=None)
            elif kind in KINDS:
                is_apart = opcode.endswith("-start") and '"is_sync":true' not in instruction.attributes
                is_hidden = self._has_work_until_done(position) if is_apart else self.is_hidden
                yield self._collective(kind, self.computation, instruction, is_hidden)
            elif opcode == "send" and "xla_megascale_runtime" in instruction.attributes:
                yield self._between_slices(position)
            elif opcode == "async-start":
                for name in names:
                    yield from self.enter(name, is_hidden=self._has_work_until_done(position))
            elif opcode == "fusion" and names[0].startswith("all-reduce-scatter"):
                inner = self.program.computations[names[0]]
                reduction = next(i for i in inner.instructions if i.opcode == "all-reduce")
                yield self._collective("reduce-scatter", inner, reduction, self.is_hidden, instruction.op_name)
            elif opcode == "fusion" and (channel := _carried_channel(self.program.computations[names[0]])):
                # Each fusion that carries a collective on repeats it, with the same channel.
                if channel not in carried:
                    carried.add(channel)
                    yield from self.enter(names[0], is_hidden=True)
            elif opcode in ("fusion", "call", "custom-call"):
                for name in names:
                    yield from self.enter(name)

    def _collective(
        self, kind: str, computation: Computation, instruction: Instruction, is_hidden: bool | None, op_name: str = ""
    ) -> Collective:
        group = _first_group(instruction.attributes, math.prod(self.mesh.values()))
        found = self._describe(kind, computation, instruction, instruction.operands, op_name)
        return replace(
            found,
            group=group,
            group_size=len(group),
            axes=_axes(group, self.mesh),
            is_asynchronous=is_hidden is not None,
            is_hidden=bool(is_hidden),
        )

    def _between_slices(self, position: int) -> Collective:
        """Reads a send to the runtime of the datacenter network, which reduces or gathers over the slices."""
        send = self.computation.instructions[position]
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
        targets = re.search(r'_xla_megascale_target="\{([\d,]+)\}', send.attributes)
        name = kind[1].lower().replace("_", "-") if kind else "send"
        return replace(
            self._describe(name, self.computation, send, send.operands[:1]),
            group_size=len(targets[1].split(",")) if targets else 2,
            # Slices differ along the outermost axis alone.
            axes=tuple(self.mesh)[:1],
            is_asynchronous=True,
            is_hidden=self._has_work_until_received(position),
            is_between_slices=True,
        )

    def _describe(
        self, kind: str, computation: Computation, instruction: Instruction, names: Sequence[str], op_name: str = ""
    ) -> Collective:
        types = [computation.by_name[name].type for name in names]
        return Collective(
            kind=kind,
            arrays=tuple(array for text in types for array in hlo.arrays(text)),
            operand_bytes=sum(map(hlo.num_bytes, types)),
            runs=self.runs,
            loops=self.loops,
            op_name=instruction.op_name or op_name or (self.loops[-1] if self.loops else ""),
        )

    def _has_work_until_done(self, start: int) -> bool:
        """Whether work is scheduled between an asynchronous start and its end."""
        instructions = self.computation.instructions
        names, started = {instructions[start].name}, start
        for position in range(start + 1, len(instructions)):
            instruction = instructions[position]
            if not names & set(instruction.operands):
                continue
            if instruction.opcode.endswith("-done"):
                return self._has_work(started, position)
            if instruction.opcode.endswith("-update"):
                # It begins only when it has its operands.
                names, started = {instruction.name}, position
        # It ends elsewhere, as in the next iteration of a loop.
        return True

    def _has_work_until_received(self, start: int) -> bool:
        """Whether work is scheduled between a send and the end of the receive that belongs to it."""
        instructions = self.computation.instructions
        rendezvous = re.search(r'_xla_host_transfer_rendezvous="[^"]*"', instructions[start].attributes)
        receives = {i.name for i in instructions if i.opcode == "recv" and rendezvous and rendezvous[0] in i.attributes}
        for position in range(start + 1, len(instructions)):
            if instructions[position].opcode == "recv-done" and receives & set(instructions[position].operands):
                return self._has_work(start, position)
        return True

    def _has_work(self, start: int, stop: int) -> bool:
        return any(_is_work(self.program, between) for between in self.computation.instructions[start + 1 : stop])


def _is_work(program: HloProgram, instruction: Instruction) -> bool:
    if instruction.opcode not in _WORK:
        return False
    opcodes = {i.opcode for name in instruction.called("calls") for i in program.computations[name].instructions}
    if opcodes & set(KINDS):
        return False
    is_heavy = instruction.opcode != "fusion" or bool(opcodes & {"convolution", "dot"})
    return is_heavy or hlo.num_bytes(instruction.type) >= _LEAST_WORK_BYTES


def _carried_channel(computation: Computation) -> str | None:
    """Returns the channel of the collective that a fusion carries on; None if it carries none."""
    collective = next((i for i in computation.instructions if i.opcode in KINDS), None)
    is_part = computation.name.startswith("async_collective_fusion") or any(
        i.opcode == "custom-call" and "AsyncCollective" in i.attributes for i in computation.instructions
    )
    if collective is None or not is_part:
        return None
    match = re.search(r"channel_id=(\d+)", collective.attributes)
    return match[1] if match else collective.name


def _first_group(attributes: str, num_devices: int) -> tuple[int, ...]:
    """Lists the devices of the first group, in any notation of XLA; of a permutation, the first ring."""
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", attributes):
        return _ring({int(source): int(target) for source, target in re.findall(r"\{(\d+),(\d+)\}", pairs[1])})
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, listed[1].split(",")))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        sizes = [int(size) for size in iota[3].split(",")]
        order = [int(axis) for axis in iota[4].split(",")] if iota[4] else range(len(sizes))
        devices = np.arange(math.prod(sizes)).reshape(sizes).transpose(order)
        return tuple(devices.ravel()[: int(iota[2])].tolist())
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        return _mesh_group({name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}, mesh[2])
    return tuple(range(num_devices))


def _ring(targets: dict[int, int]) -> tuple[int, ...]:
    first = min(targets, default=0)
    ring, device = [first], targets.get(first, first)
    while device not in ring:
        ring.append(device)
        device = targets.get(device, first)
    return tuple(ring)


def _mesh_group(mesh: dict[str, int], axes: str) -> tuple[int, ...]:
    """Lists the first group over axes of a mesh, or parts of axes: `'a'` or `'a':(before)size`."""
    group, names = [0], list(mesh)
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        size = int(part or mesh[name])
        inner = math.prod(mesh[other] for other in names[names.index(name) + 1 :])
        stride = inner * mesh[name] // (int(before or 1) * size)
        group = [device + stride * index for device in group for index in range(size)]
    return tuple(group)


def _axes(group: Sequence[int], mesh: dict[str, int]) -> tuple[str, ...]:
    """Lists the mesh axes along which devices of a group differ."""
    positions = np.unravel_index(np.array(group), tuple(mesh.values()))
    return tuple(name for name, along in zip(mesh, positions, strict=True) if np.ptp(along))


def merged(collectives: Sequence[Collective]) -> list[Collective]:
    """Merges equal collectives, with the sum of their runs; those that send most come first."""
    runs: dict[Collective, int] = {}
    for collective in collectives:
        key = replace(collective, runs=0)
        runs[key] = runs.get(key, 0) + collective.runs
    found = [replace(key, runs=count) for key, count in runs.items()]
    return sorted(found, key=lambda collective: -collective.sent_bytes * collective.runs)


def full_weight_reductions(
    collectives: Sequence[Collective], weights: dict[str, int]
) -> list[tuple[Collective, tuple[str, ...]]]:
    """Finds all-reduces over fsdp of whole parameters, with the names of those parameters.

    They are a fault: a gather or a reduce-scatter of a shard would send less. `weights` are the elements of each
    parameter of a layer, before sharding over fsdp.
    """
    faults = []
    for collective in collectives:
        sizes = {math.prod(shape) for _, shape in collective.arrays}
        names = tuple(name for name, size in weights.items() if size in sizes)
        if names and collective.kind == "all-reduce" and "fsdp" in collective.axes:
            faults.append((collective, names))
    return faults
