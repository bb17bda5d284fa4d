"""How much memory a compiled step takes on a chip and what in it is large: read from what the compiler writes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cm3leon_jax.planning import hlo

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Buffer:
    """One array that has its place in the memory of a step."""

    bytes: int
    # Element type and shape on one chip, such as `bf16[4,4096,16384]`.
    array: str
    # The JAX operation that makes it, as a path; for the state, the name of the parameter.
    op_name: str


@dataclass(frozen=True)
class Memory:
    """Of one chip."""

    total_bytes: int | None
    fits: bool
    # The largest that share no place, largest first: together they are part of the total.
    largest: tuple[Buffer, ...] = ()


def is_out_of_memory(message: str) -> bool:
    """Whether the compiler's error says that a step does not fit."""
    return "RESOURCE_EXHAUSTED" in message or "CompileTimeHbmOom" in message


def bytes_of_message(message: str) -> int | None:
    """What an out-of-memory error says would be needed: `... (161.73G) exceeds available HBM (95.73G)`."""
    match = re.search(r"\(?([\d.]+)([KMGT]?)\)? exceeds", message) or re.search(r"Used ([\d.]+)([KMGT]?)", message)
    return round(float(match[1]) * _UNITS[match[2]]) if match else None


def total_bytes(assignment: str) -> int:
    """Device memory of a step, of a dumped `*buffer-assignment.txt`.

    Left out is what called computations name as theirs (`thread-local`): it lies in the buffers of their callers. The
    compiler's own memory report adds it, and so comes to too much where much runs on a SparseCore.
    """
    return sum(size for size, attributes, _ in _allocations(assignment) if _is_device_memory(attributes))


def largest(assignment: str, program: hlo.Program, most: int = 6) -> tuple[Buffer, ...]:
    """The largest arrays of a step that share no place."""
    instructions = {instruction.name: instruction for instruction in program.instructions()}
    values: list[tuple[int, int, str, str]] = []
    for place, (_, attributes, listed) in enumerate(_allocations(assignment)):
        if _is_device_memory(attributes):
            found = re.findall(r"<\d+ ([\w.\-]+)(?:\{[\d,]*\})? @0> \(size=(\d+),offset=(\d+)\): (\S+)", listed)
            # Allocations lie one behind the other, far apart.
            values += [(int(size), (place << 50) + int(offset), name, kind) for name, size, offset, kind in found]
    taken: list[tuple[int, int]] = []
    buffers: list[Buffer] = []
    for size, offset, name, kind in sorted(values, key=lambda value: -value[0]):
        if len(buffers) == most:
            break
        if all(offset + size <= start or end <= offset for start, end in taken):
            taken.append((offset, offset + size))
            buffers.append(Buffer(size, kind.partition("{")[0], _op_name(name, instructions)))
    return tuple(buffers)


def _op_name(name: str, instructions: dict[str, hlo.Instruction]) -> str:
    """The JAX operation that an array comes from, or else one that reads it."""
    maker = instructions.get(name)
    if maker is not None and maker.op_name:
        return maker.op_name
    readers = (i.op_name for i in instructions.values() if name in i.operands and i.op_name)
    return next(readers, "")


def _allocations(assignment: str) -> list[tuple[int, str, str]]:
    """(bytes, attributes, text of its values) of each allocation."""
    parts = re.split(r"^allocation \d+: ", assignment, flags=re.MULTILINE)[1:]
    found = []
    for part in parts:
        head, _, values = part.partition("\n")
        size, _, attributes = head.removeprefix("size ").partition(", ")
        found.append((int(size), attributes, values))
    return found


def _is_device_memory(attributes: str) -> bool:
    # Another color is another memory: of the core, of the SparseCore, of the host.
    return "thread-local" not in attributes and "color" not in attributes
