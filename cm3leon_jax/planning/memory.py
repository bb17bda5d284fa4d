"""Device memory of a compiled step, and its largest arrays, from the compiler's buffer assignment."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cm3leon_jax.planning.hlo import HloProgram

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Buffer:
    """One array in the memory of a step."""

    bytes: int
    # Element type and shape on one chip, such as `bf16[4,4096,16384]`.
    array: str
    # Path of the JAX operation that makes it, or name of the parameter.
    op_name: str


@dataclass(frozen=True)
class StepMemory:
    """Memory that a step takes on one chip."""

    total_bytes: int | None
    fits: bool
    # The largest buffers that do not overlap, largest first: together they are part of the total.
    largest: tuple[Buffer, ...] = ()


def is_out_of_memory(message: str) -> bool:
    """Whether an error of the compiler says that a step does not fit."""
    return "RESOURCE_EXHAUSTED" in message or "CompileTimeHbmOom" in message


def bytes_of_message(message: str) -> int | None:
    """Parses the bytes that a step needs from an error such as `... (161.73G) exceeds available HBM (95.73G)`."""
    match = re.search(r"\(?([\d.]+)([KMGT]?)\)? exceeds", message) or re.search(r"Used ([\d.]+)([KMGT]?)", message)
    return round(float(match[1]) * _UNITS[match[2]]) if match else None


def total_bytes(assignment: str) -> int:
    """Sums the device memory of a step, given a dumped `*buffer-assignment.txt`.

    Thread-local allocations of called computations do not count: they are within the buffers of their callers. The
    compiler's own report counts them, and so overestimates where much runs on a SparseCore.
    """
    return sum(size for size, attributes, _ in _allocations(assignment) if _is_device_memory(attributes))


def largest(assignment: str, program: HloProgram, most: int = 6) -> tuple[Buffer, ...]:
    """Finds the largest arrays of a step that do not overlap in memory."""
    values: list[tuple[int, int, str, str]] = []
    for number, (_, attributes, listed) in enumerate(_allocations(assignment)):
        if _is_device_memory(attributes):
            found = re.findall(r"<\d+ ([\w.\-]+)(?:\{[\d,]*\})? @0> \(size=(\d+),offset=(\d+)\): (\S+)", listed)
            # Far apart, so that values of different allocations do not overlap.
            values += [(int(size), (number << 50) + int(offset), name, kind) for name, size, offset, kind in found]
    taken: list[tuple[int, int]] = []
    buffers: list[Buffer] = []
    for size, offset, name, kind in sorted(values, key=lambda value: -value[0]):
        if len(buffers) == most:
            break
        if all(offset + size <= start or end <= offset for start, end in taken):
            taken.append((offset, offset + size))
            buffers.append(Buffer(size, kind.partition("{")[0], _op_name(name, program)))
    return tuple(buffers)


def _op_name(name: str, program: HloProgram) -> str:
    """Finds the JAX operation that makes an array, or else one that reads it."""
    named = [i for scope in program.computations.values() for i in scope.instructions if i.op_name]
    makers, readers = (i for i in named if i.name == name), (i for i in named if name in i.operands)
    return next((i.op_name for i in (*makers, *readers)), "")


def _allocations(assignment: str) -> list[tuple[int, str, str]]:
    """Splits an assignment into (bytes, attributes, text of its values) of each allocation."""
    found = []
    for part in re.split(r"^allocation \d+: ", assignment, flags=re.MULTILINE)[1:]:
        head, _, values = part.partition("\n")
        size, _, attributes = head.removeprefix("size ").partition(", ")
        found.append((int(size), attributes, values))
    return found


def _is_device_memory(attributes: str) -> bool:
    # Another color is another memory: of the core, of the SparseCore, of the host.
    return "thread-local" not in attributes and "color" not in attributes
