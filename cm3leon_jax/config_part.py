"""The base of the config's parts: frozen dataclasses that check their values when they are made."""

from __future__ import annotations

import re
from typing import Annotated

from cm3leon_jax.errors import UserError
from cm3leon_jax.ranges import Range, first_fault

# Bounds far above any real model: more layers, built one by one, or more names would look like a program that hangs.
Layers = Annotated[int, Range(at_least=1, at_most=10_000)]
Names = Annotated[int, Range(at_least=1, at_most=1 << 22)]


class Part:
    """A part of the config, whose numbers are within the ranges of their types."""

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.{self.name_in_config()}.{fault}")

    @classmethod
    def name_in_config(cls) -> str:
        """The name of the field of `Config` that holds it, such as "image_tokenizer" for ImageTokenizerConfig."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Config")).lower()


def require(condition: bool, message: str) -> None:
    """Raises a `UserError` unless a condition holds; `message` begins with the field."""
    if not condition:
        raise UserError(f"config.{message}")


def one_of(part: str, values: object, name: str, *choices: str) -> None:
    """Raises a `UserError` unless a field has one of the choices."""
    value, listed = getattr(values, name), [repr(choice) for choice in choices]
    require(value in choices, f"{part}.{name} is {value!r}: {', '.join(listed[:-1])} or {listed[-1]}")
