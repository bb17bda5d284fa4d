"""The base of the config's parts: frozen dataclasses that check their values when they are made.

The type of a field says whether its value may change when a run goes on: `every: Annotated[PositiveInt, AT_RESUME]`.
What a whole part says holds for all its fields that have none; a field without any must stay as it is.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import typing
from typing import Annotated, Any, ClassVar

from cm3leon_jax.errors import UserError
from cm3leon_jax.ranges import Range, first_fault
from cm3leon_jax.registry import Registry

# Bounds far above any real model: more layers, built one by one, or more names would look like a program that hangs.
Layers = Annotated[int, Range(at_least=1, at_most=10_000)]
Names = Annotated[int, Range(at_least=1, at_most=1 << 22)]


class MayChange(enum.Enum):
    """When the value of a field may differ from that of the run, or the import, that is continued."""

    AT_RESUME = enum.auto()
    # Only where a run starts from imported parameters.
    AFTER_IMPORT = enum.auto()


AT_RESUME, AFTER_IMPORT = MayChange


def changeable(part: object, prefix: str = "", after_import: bool = False) -> tuple[str, ...]:
    """Dotted names of the fields of a dataclass, and of its parts, that may change at a resume (or `after_import`).

    Of an instance, parts may be of subclasses with more fields. `prefix` begins each name, such as "config.".
    """
    return tuple(prefix + name for name, rule in _rules(part, None) if rule is AT_RESUME or (rule and after_import))


def field_types(part: Any, include_extras: bool = False) -> dict[str, Any]:
    """The type of each field of a dataclass, by name; `include_extras` keeps what is annotated."""
    hints = typing.get_type_hints(part, include_extras=include_extras)
    return {field.name: hints[field.name] for field in dataclasses.fields(part)}


def _rules(part: Any, inherited: MayChange | None) -> list[tuple[str, MayChange | None]]:
    kind = part if isinstance(part, type) else type(part)
    # A subclass that narrows the type of a field keeps the rule of its base.
    hints = [
        typing.get_type_hints(base, include_extras=True) for base in kind.__mro__ if dataclasses.is_dataclass(base)
    ]
    found = []
    for name in (field.name for field in dataclasses.fields(kind)):
        notes = [note for of_class in hints for note in getattr(of_class.get(name), "__metadata__", ())]
        rule = next((note for note in notes if isinstance(note, MayChange)), inherited)
        inner = getattr(hints[0][name], "__origin__", hints[0][name]) if part is kind else getattr(part, name)
        if dataclasses.is_dataclass(inner):
            found += [(f"{name}.{inside}", its_rule) for inside, its_rule in _rules(inner, rule)]
        else:
            found.append((name, rule))
    return found


class Part:
    """A part of the config, whose values are among those that their types allow."""

    # Where the part has families: the config class of each, by the value of the field `family`.
    families: ClassVar[Registry | None] = None

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.{self.name_in_config()}.{fault}")

    @classmethod
    def name_in_config(cls) -> str:
        """Where `Config` has it, such as "optimizer" or "encoder.training"; the same for every family of a part."""
        base = next(base for base in cls.__mro__ if Part in base.__bases__)
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", base.__name__.removesuffix("Config")).lower()
        return name.replace("_training", ".training")


def require(condition: bool, message: str) -> None:
    """Raises a `UserError` unless a condition holds; `message` begins with the field."""
    if not condition:
        raise UserError(f"config.{message}")
