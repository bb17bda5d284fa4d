"""Defines the allowed values of the config's fields as types: `beta2: Decay = 0.95` takes what is in [0, 1).

A device computes in 32 bits: a number that would become another, 0 or infinity there is out of every range, as is NaN.
"""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np

from cm3leon_jax.errors import UserError

_FLOAT32 = np.finfo(np.float32)
_LARGEST = {int: 2**31 - 1, float: float(_FLOAT32.max)}
_SMALLEST = float(_FLOAT32.smallest_normal)

_Note = TypeVar("_Note")
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Range:
    """The allowed values of a number: those within the bounds, and one `other` value with a meaning of its own."""

    at_least: int | float | None = None
    above: int | float | None = None
    at_most: int | float | None = None
    below: int | float | None = None
    other: int | None = None

    def __str__(self) -> str:
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        text = " and ".join(f"{word} {bound:.10g}" for word, bound in bounds.items() if bound is not None)
        return (text or "any number") if self.other is None else f"{self.other}, or {text}"

    def __contains__(self, value: int | float) -> bool:
        return value == self.other or (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def fault(self, number: int | float, kind: type) -> str:
        """What a number of this type has to be, if it is not; else an empty text."""
        if isinstance(number, float) and not math.isfinite(number):
            return f"{self}, and finite"
        if number not in self:
            return str(self)
        if self.at_most is None and self.below is None and abs(number) > _LARGEST[kind]:
            return f"{self}, and at most {_LARGEST[kind]:.10g}, where 32 bits end"
        if 0 < abs(number) < _SMALLEST:
            return f"{self}, and {_SMALLEST:.2g} is the number next to 0 in 32 bits"
        if kind is float and (rounded := float(np.float32(number))) not in self:
            return f"{self}, and in 32 bits it is {rounded:g}"
        return ""


class OneOf:
    """The allowed values of a text: `packing: Annotated[str, OneOf("best_fit", "concat_then_split")]`."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __str__(self) -> str:
        *others, last = map(repr, self.choices)
        return f"{', '.join(others)} or {last}"

    def fault(self, value: str, kind: type) -> str:
        """What a text has to be, if it is not; else an empty text."""
        return "" if value in self.choices else str(self)


PositiveInt = Annotated[int, Range(at_least=1)]
NonNegativeInt = Annotated[int, Range(at_least=0)]
# NumPy, JAX and the counter-based randomness all take it; of a larger one JAX uses the last 32 bits alone.
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Fraction = Annotated[float, Range(at_least=0, at_most=1)]
# A fraction below 1, such as what a running mean keeps.
Decay = Annotated[float, Range(at_least=0, below=1)]


def annotation(hint: Any, kind: type[_Note]) -> tuple[type, _Note] | None:
    """The type and note of `Annotated[type, note]`, alone, as the first of a tuple or union such as `... | None`, or as
    the values of a mapping.
    """
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, kind):
            return hint.__origin__, note
    if typing.get_origin(hint) is Mapping:
        return annotation(typing.get_args(hint)[1], kind)
    is_outer = hasattr(hint, "__metadata__") or typing.get_origin(hint) in (tuple, typing.Union, types.UnionType)
    return annotation(typing.get_args(hint)[0], kind) if is_outer and typing.get_args(hint) else None


@functools.cache
def ranges_of(part: type) -> dict[str, tuple[type, Range | OneOf]]:
    """The type and the allowed values of a dataclass's fields that have such; of a tuple or mapping, of an entry."""
    hints = typing.get_type_hints(part, include_extras=True)
    kinds: tuple[type[Range | OneOf], ...] = (Range, OneOf)
    return {name: found for name, hint in hints.items() for kind in kinds if (found := annotation(hint, kind))}


def first_fault(values: Any) -> str | None:
    """Names the first field of a dataclass whose value is not allowed, with its value and what is."""
    for name, (kind, allowed) in ranges_of(values.__class__).items():
        for where, each in _entries(name, getattr(values, name)):
            if fault := allowed.fault(each, kind):
                return f"{where} is {_shown(each)}: {fault}"
    return None


def _entries(name: str, value: Any) -> list[tuple[str, Any]]:
    """The values of a field that its range holds for, each with its name."""
    if isinstance(value, Mapping):
        return [(f"{name}.{key}", each) for key, each in value.items()]
    if isinstance(value, tuple):
        return [(name, each) for each in value]
    return [] if value is None else [(name, value)]


def whole_number(name: str, allowed: Range) -> Callable[[str], int]:
    """The `type` of the command-line argument `name`, an integer in a range."""
    return _argument(name, allowed, int, "a whole number")


def number(name: str, allowed: Range) -> Callable[[str], float]:
    """The `type` of the command-line argument `name`, a number in a range."""
    return _argument(name, allowed, float, "a number")


def _argument(name: str, allowed: Range, kind: type[_Number], what: str) -> Callable[[str], _Number]:
    def checked(text: str) -> _Number:
        try:
            value = kind(text)
        except ValueError:
            raise UserError(f"{name}={text}: {what}, {allowed}") from None
        if fault := allowed.fault(value, kind):
            raise UserError(f"{name}={_shown(value) if kind is int else text}: {fault}")
        return value

    return checked


def _shown(value: int | float | str) -> str:
    return f"about 2**{value.bit_length()}" if isinstance(value, int) and abs(value) >= 2**64 else repr(value)
