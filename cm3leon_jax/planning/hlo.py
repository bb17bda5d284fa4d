"""Reads the text of an optimized XLA program: computations, instructions, and how often each loop runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*)? \{$|^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128, "token": 0}


@dataclass(frozen=True)
class Instruction:
    """One line: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    # What stands between the parentheses: operands, or the value of a constant.
    arguments: str

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations that an attribute such as `body` or `calls` names."""
        found: list[str] = []
        for attribute in attributes:
            match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
            if match:
                found += re.findall(r"[\w.\-]+", match[1])
        return found

    @property
    def op_name(self) -> str:
        """The JAX operation that it comes from, as a path."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they run."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Its instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return self.instructions[-1]


@dataclass(frozen=True)
class Program:
    """All computations, and the one where the program starts."""

    computations: dict[str, Computation]
    entry: str

    def instructions(self) -> Iterator[Instruction]:
        """Every instruction of every computation."""
        for computation in self.computations.values():
            yield from computation.instructions


def parse(text: str) -> Program:
    """Reads what `HloModule::ToString` writes."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    lines: list[Instruction] = []
    for line in text.splitlines():
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header:
            name, lines = header[2] or header[4], []
            entry = name if header[1] or header[3] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, tuple(lines))
        else:
            match = _INSTRUCTION.match(line)
            if match:
                lines.append(_instruction(match[1], match[2]))
    return Program(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    opening = rest.find("(")
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, kind, rest[:opening], operands, rest[closing + 1 :], arguments)


def _closing(text: str, opening: int) -> int:
    """The place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"no closing parenthesis in {text[:80]}")


def arrays(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The arrays of a type, a tuple's in order: [(element type, shape)]."""
    plain = re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", type_text)
    return [(m[1], tuple(int(size) for size in m[2].split(",") if size)) for m in _SHAPE.finditer(plain)]


def num_bytes(type_text: str) -> int:
    """Bytes of all arrays of a type, without padding."""
    return sum(math.ceil(math.prod(shape) * _bits(element) / 8) for element, shape in arrays(type_text))


def element(type_text: str, index: Sequence[int]) -> str:
    """The array at `index` of a type, nested tuples entered one by one, as `bf16[4,128]` without its layout."""
    for place in index:
        type_text = _parts(type_text)[place]
    found = arrays(type_text)
    return f"{found[0][0]}[{','.join(map(str, found[0][1]))}]" if len(found) == 1 else "tuple"


def _parts(tuple_text: str) -> list[str]:
    """The types of a tuple's type."""
    depth, start, parts = 0, 1, []
    for place, character in enumerate(tuple_text):
        depth += character in "([{"
        depth -= character in ")]}"
        if (character == "," and depth == 1) or (depth == 0 and character == ")"):
            parts.append(tuple_text[start:place])
            start = place + 1
    return parts


def _bits(element: str) -> int:
    if element in _BITS:
        return _BITS[element]
    digits = re.search(r"\d+", element)
    return int(digits[0]) if digits else 8


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often a `while` runs: from its first value, bound and increment; None where they are no constants."""
    known = re.search(r'known_trip_count[^\d]*"?n"?[^\d]*(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition = program.computations[loop.called("condition")[0]]
    body = program.computations[loop.called("body")[0]]
    compared = _comparison(program, condition)
    if compared is None:
        return None
    index, bound, direction = compared
    start = _tuple_constant(computation, loop, index)
    step = _increment(program, body, index)
    span = bound - (start or 0) + (1 if direction == "LE" else 0)
    return max(0, -(-span // (step or 1)))


def _comparison(program: Program, condition: Computation) -> tuple[int, int, str] | None:
    """(index of the counter in the loop's tuple, bound, direction) of a condition `counter < constant`."""
    root, scope, arguments = condition.root, condition, condition
    if root.opcode == "fusion":
        scope = program.computations[root.called("calls")[0]]
    compare = next((i for i in reversed(scope.instructions) if i.opcode == "compare"), None)
    if compare is None:
        return None
    direction = re.search(r"direction=(\w+)", compare.attributes)
    index, bound = None, None
    for operand in compare.operands:
        found, place = scope.by_name[operand], scope
        if scope is not arguments and found.opcode == "parameter":
            found, place = arguments.by_name[root.operands[int(found.arguments)]], arguments
        found = _through_copies(place, found)
        if found.opcode == "constant":
            bound = _integer(found)
        elif found.opcode == "get-tuple-element":
            index = _index(found)
    if index is None or bound is None or direction is None:
        return None
    return index, bound, direction[1]


def _through_copies(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode in ("copy", "bitcast", "convert") and instruction.operands:
        instruction = computation.by_name[instruction.operands[0]]
    return instruction


def _tuple_constant(computation: Computation, loop: Instruction, index: int) -> int | None:
    initial = computation.by_name.get(loop.operands[0])
    if initial is None or initial.opcode != "tuple":
        return None
    value = _through_copies(computation, computation.by_name[initial.operands[index]])
    return _integer(value) if value.opcode == "constant" else None


def _increment(program: Program, body: Computation, index: int) -> int | None:
    if body.root.opcode != "tuple":
        return None
    value = _through_copies(body, body.by_name[body.root.operands[index]])
    scope = body
    if value.opcode == "fusion":
        scope = program.computations[value.called("calls")[0]]
        value = scope.root
    if value.opcode != "add":
        return None
    constants = [scope.by_name[operand] for operand in value.operands if scope.by_name[operand].opcode == "constant"]
    return _integer(constants[0]) if constants else None


def _integer(constant: Instruction) -> int | None:
    return int(constant.arguments) if re.fullmatch(r"-?\d+", constant.arguments) else None


def _index(element: Instruction) -> int:
    match = re.search(r"index=(\d+)", element.attributes)
    assert match is not None
    return int(match[1])
