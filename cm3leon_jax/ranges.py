"""The ranges of the config's numbers, each part of a type: `beta2: Decay = 0.95` takes what lies in [0, 1).

A device counts and computes in 32 bits: a number that would become another, 0 or an infinity there is out of every
range, and so is a NaN.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from cm3leon_jax.errors import UserError

_FLOAT32 = np.finfo(np.float32)
_LARGEST = {int: 2**31 - 1, float: float(_FLOAT32.max)}
_SMALLEST = float(_FLOAT32.smallest_normal)


@dataclass(frozen=True)
class Range:
    """What a number may be: what lies within the bounds, and one `other` value with a meaning of its own."""

    at_least: int | float | None = None
    above: int | float | None = None
    at_most: int | float | None = None
    below: int | float | None = None
    other: int | None = None

    def __str__(self) -> str:
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        named = [f"{word} {bound:.10g}" for word, bound in bounds.items() if bound is not None]
        text = " and ".join(named) or "any number"
        return text if self.other is None else f"{self.other}, or {text}"

    def __contains__(self, value: int | float) -> bool:
        within = (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )
        return value == self.other or within

    @property
    def is_open(self) -> bool:
        """Whether nothing but the machine bounds it above."""
        return self.at_most is None and self.below is None


PositiveInt = Annotated[int, Range(at_least=1)]
NonNegativeInt = Annotated[int, Range(at_least=0)]
# What NumPy, JAX and the counter-based randomness all take; of larger ones JAX sees the last 32 bits alone.
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Fraction = Annotated[float, Range(at_least=0, at_most=1)]
# A share that is never the whole, such as what a running mean keeps.
Decay = Annotated[float, Range(at_least=0, below=1)]


@functools.cache
def ranges_of(part: type) -> dict[str, tuple[type, Range]]:
    """The type and range of each number among the fields of a dataclass: of one, of one or None, or of a tuple's."""
    found = {}
    for name, kind in typing.get_type_hints(part, include_extras=True).items():
        for entry in (kind, *typing.get_args(kind)):
            for note in getattr(entry, "__metadata__", ()):
                if isinstance(note, Range):
                    found[name] = (entry.__origin__, note)
    return found


def whole_number(name: str, allowed: Range) -> Callable[[str], int]:
    """The `type` of an argument that is a number of this range; `name` is the argument's."""

    def checked(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise UserError(f"{name}={text}: a whole number, {allowed}") from None
        if fault := _fault(number, int, allowed):
            raise UserError(f"{name}={_shown(number)}: {fault}")
        return number

    return checked


def first_fault(values: Any) -> str | None:
    """Which number of a dataclass is out of its range, its value, and the range; None if all lie within."""
    for name, (kind, allowed) in ranges_of(values.__class__).items():
        value = getattr(values, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and (fault := _fault(number, kind, allowed)):
                return f"{name} is {_shown(number)}: {fault}"
    return None


def _fault(number: int | float, kind: type, allowed: Range) -> str:
    if isinstance(number, float) and not math.isfinite(number):
        return f"{allowed}, and finite"
    if number not in allowed:
        return str(allowed)
    if allowed.is_open and abs(number) > _LARGEST[kind]:
        return f"{allowed}, and at most {_LARGEST[kind]:.10g}, where 32 bits end"
    if 0 < abs(number) < _SMALLEST:
        return f"{allowed}, and {_SMALLEST:.2g} is the number next to 0 in 32 bits"
    if kind is float and (rounded := float(np.float32(number))) not in allowed:
        return f"{allowed}, and in 32 bits it is {rounded:g}"
    return ""


def _shown(number: int | float) -> str:
    return f"about 2**{number.bit_length()}" if isinstance(number, int) and abs(number) >= 2**64 else str(number)
