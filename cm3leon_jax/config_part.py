"""What every part of the config is: a frozen dataclass whose values are checked when it is made."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from cm3leon_jax.errors import UserError
from cm3leon_jax.ranges import Range, first_fault
from cm3leon_jax.registry import Registry

# Layers that are built one after the other, and ids that each get a name: more of them only look like a program that
# hangs, or one that runs out of memory.
Layers = Annotated[int, Range(at_least=1, at_most=10_000)]
Names = Annotated[int, Range(at_least=1, at_most=1 << 22)]


class Part:
    """A part of the config, each number of which lies in the range that its type says."""

    # Where the part has families: the config class of each, by the value of the field `family`.
    families: ClassVar[Registry | None] = None

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.{self.name_in_config()}.{fault}")

    @classmethod
    def name_in_config(cls) -> str:
        """The name of the field of `Config` that holds it, such as "optimizer" for OptimizerConfig."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Config")).lower()


def require(condition: bool, message: str) -> None:
    """Refuses a config, unless a condition holds; `message` begins with the field."""
    if not condition:
        raise UserError(f"config.{message}")


def one_of(part: str, values: object, name: str, *choices: str) -> None:
    """Refuses a value of a field that is none of the choices."""
    value, listed = getattr(values, name), [repr(choice) for choice in choices]
    require(value in choices, f"{part}.{name} is {value!r}: {', '.join(listed[:-1])} or {listed[-1]}")
