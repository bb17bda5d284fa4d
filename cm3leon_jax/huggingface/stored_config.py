"""Reads fields of other people's JSON files, each checked against its type, or named with its file."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cm3leon_jax.errors import UserError

# Above every size of a published model, and small enough that the product of a few is still a number of bytes.
_LARGEST_SIZE = 1 << 24
_MOST_LAYERS = 1 << 12


@dataclass(frozen=True)
class StoredConfig:
    """A JSON object; a field that is absent or null has its default."""

    values: Mapping[str, Any]
    # The file, and the part of it that holds the fields, such as "text_config."; they begin every message.
    where: str
    prefix: str = ""

    def part(self, *names: str) -> StoredConfig:
        """The object under the first of these names that has one; empty if none does."""
        for name in names:
            if found := self.values.get(name):
                if not isinstance(found, dict):
                    raise self.error(name, found, "an object")
                return StoredConfig(found, self.where, f"{name}.")
        return StoredConfig({}, self.where, f"{names[-1]}.")

    def with_defaults(self, defaults: Mapping[str, Any]) -> StoredConfig:
        """The same with defaults for many fields at once."""
        given = {name: value for name, value in self.values.items() if value is not None}
        return StoredConfig({**defaults, **given}, self.where, self.prefix)

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None, least: int = 1, most: int = _LARGEST_SIZE) -> int:
        wanted = f"a whole number from {least} to {most:,}"
        return self._checked(name, default, lambda value: type(value) is int and least <= value <= most, wanted)

    def num_layers(self, name: str) -> int:
        """A number of layers, up to one that no model has."""
        return self.size(name, most=_MOST_LAYERS)

    def number(self, name: str, default: float | None = None) -> float:
        return float(self._checked(name, default, _is_number, "a number"))

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """As many finite numbers as the default has."""
        value = self.get(name, default)
        if not isinstance(value, list | tuple) or len(value) != len(default) or not all(map(_is_number, value)):
            raise self.error(name, value, f"{len(default)} numbers")
        return tuple(map(float, value))

    def flag(self, name: str, default: bool) -> bool:
        return self._checked(name, default, lambda value: type(value) is bool, "true or false")

    def text(self, name: str, default: str | None = None) -> str:
        return self._checked(name, default, lambda value: type(value) is str, "a text")

    def choice(self, name: str, choices: Iterable[str]) -> str:
        return self._checked(name, None, list(choices).__contains__, f"one of {', '.join(map(repr, choices))}")

    def _checked(self, name: str, default: Any, is_right: Callable[[Any], bool], wanted: str) -> Any:
        value = self.get(name, default)
        if not is_right(value):
            raise self.error(name, value, wanted)
        return value

    def refuse_if(self, name: str, condition: bool) -> None:
        """Raises for a field whose value no field of ModelConfig says."""
        if condition:
            value = reprlib.repr(self.values.get(name))
            raise UserError(f"{self.where}: {self.prefix}{name} is {value}, which this package's model cannot express")

    def error(self, name: str, value: Any, wanted: str) -> UserError:
        """What to raise for a field with a wrong value."""
        return UserError(f"{self.where}: {self.prefix}{name} is {reprlib.repr(value)}, not {wanted}")


def _is_number(value: Any) -> bool:
    # Not by a conversion, for which a whole number of JSON may be too large.
    return type(value) in (int, float) and -1e300 < value < 1e300
