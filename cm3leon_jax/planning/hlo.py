"""Parses the text of an optimized XLA program: computations, instructions, and trip counts of loops."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \{| \(.*\{)$")
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
    # The text between the parentheses: operands, or the value of a constant.
    arguments: str

    def called(self, *attributes: str) -> list[str]:
        """Lists the computations that attributes such as `body` or `calls` name."""
        named = re.findall(rf"\b(?:{'|'.join(attributes)})=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return [name for text in named for name in re.findall(r"[\w.\-]+", text)]

    @property
    def op_name(self) -> str:
        """Path of the JAX operation that it was compiled from."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def integer(self) -> int | None:
        is_integer = self.opcode == "constant" and re.fullmatch(r"-?\d+", self.arguments)
        return int(self.arguments) if is_integer else None


@dataclass(frozen=True)
class Computation:
    """Instructions in the order of execution."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """The instruction whose value is returned."""
        return self.instructions[-1]

    def source(self, name: str) -> Instruction:
        """Finds the instruction that makes a value, through copies and conversions."""
        found = self.by_name[name]
        while found.opcode in ("copy", "bitcast", "convert") and found.operands:
            found = self.by_name[found.operands[0]]
        return found


@dataclass(frozen=True)
class HloProgram:
    """All computations, and the name of the one that the program starts with."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> HloProgram:
    """Parses the output of `HloModule::ToString`."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    lines: list[Instruction] = []
    for line in text.splitlines():
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, tuple(lines))
        elif match := _INSTRUCTION.match(line):
            lines.append(_instruction(match[1], match[2]))
    return HloProgram(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    opening = rest.find("(")
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, kind, rest[:opening], operands, rest[closing + 1 :], arguments)


def _closing(text: str, opening: int) -> int:
    """Finds the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"no closing parenthesis in {text[:80]}")


def arrays(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Lists element type and shape of the arrays of a type, those of a tuple in order."""
    plain = re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", type_text)
    return [(m[1], tuple(int(size) for size in m[2].split(",") if size)) for m in _SHAPE.finditer(plain)]


def num_bytes(type_text: str) -> int:
    """Counts the bytes of all arrays of a type, without padding."""
    return sum(math.ceil(math.prod(shape) * _bits(element) / 8) for element, shape in arrays(type_text))


def _bits(element: str) -> int:
    digits = re.search(r"\d+", element)
    return _BITS.get(element, int(digits[0]) if digits else 8)


def trip_count(program: HloProgram, computation: Computation, loop: Instruction) -> int | None:
    """Computes the iterations of a `while` from its first value, bound and increment; None if one is no constant."""
    known = re.search(r'known_trip_count[^\d]*"?n"?[^\d]*(\d+)', loop.attributes)
    if known:
        return int(known[1])
    compared = _comparison(program, program.computations[loop.called("condition")[0]])
    if compared is None:
        return None
    index, bound, direction = compared
    initial = computation.by_name.get(loop.operands[0])
    is_tuple = initial is not None and initial.opcode == "tuple"
    start = computation.source(initial.operands[index]).integer if initial is not None and is_tuple else None
    step = _increment(program, program.computations[loop.called("body")[0]], index)
    span = bound - (start or 0) + (1 if direction == "LE" else 0)
    return max(0, -(-span // (step or 1)))


def _comparison(program: HloProgram, condition: Computation) -> tuple[int, int, str] | None:
    """Finds (index of the counter in the loop's tuple, bound, direction) of a condition `counter < constant`."""
    root, scope = condition.root, condition
    if root.opcode == "fusion":
        scope = program.computations[root.called("calls")[0]]
    compare = next((i for i in reversed(scope.instructions) if i.opcode == "compare"), None)
    direction = re.search(r"direction=(\w+)", compare.attributes) if compare else None
    if compare is None or direction is None:
        return None
    index, bound = None, None
    for operand in compare.operands:
        found = scope.by_name[operand]
        if scope is not condition and found.opcode == "parameter":
            found = condition.source(root.operands[int(found.arguments)])
        else:
            found = scope.source(operand)
        if found.opcode == "constant":
            bound = found.integer
        elif found.opcode == "get-tuple-element" and (match := re.search(r"index=(\d+)", found.attributes)):
            index = int(match[1])
    return None if index is None or bound is None else (index, bound, direction[1])


def _increment(program: HloProgram, body: Computation, index: int) -> int | None:
    """Finds the constant that a loop adds to its counter."""
    if body.root.opcode != "tuple":
        return None
    value, scope = body.source(body.root.operands[index]), body
    if value.opcode == "fusion":
        scope = program.computations[value.called("calls")[0]]
        value = scope.root
    if value.opcode != "add":
        return None
    constants = [scope.by_name[name] for name in value.operands if scope.by_name[name].opcode == "constant"]
    return constants[0].integer if constants else None
