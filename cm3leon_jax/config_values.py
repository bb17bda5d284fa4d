"""Builds dataclasses of checked values from the plain dicts of a config: parts of it, and options of what it names."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from cm3leon_jax.config_part import field_types
from cm3leon_jax.errors import UserError


def build(cls: type, values: Mapping[Any, Any], where: str, file: str = "") -> Any:
    """Makes a dataclass of values by field, each checked against the field's type.

    Raises a `UserError` that names the field that does not exist, is missing, or cannot take its value; it begins with
    `where`, such as "config.model", and ends with the file of the config.
    """
    cls = of_family(cls, values)
    fields = field_types(cls)
    for name in values:
        if name not in fields:
            raise UserError(f"{where}.{name}: no such field{closest(name, fields)}{_in(file)}")
    for field in dataclasses.fields(cls):
        has_default = (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
        if field.name not in values and not has_default:
            raise UserError(f"{where}.{field.name} is missing{_in(file)}")
    return cls(**{name: _checked(value, fields[name], f"{where}.{name}", file) for name, value in values.items()})


def of_family(part: Any, values: object) -> Any:
    """The class of a part of the config; where it has families, that of the one which the values name."""
    families = getattr(part, "families", None)
    if families is None or not isinstance(values, Mapping):
        return part
    return families.load(check_value(values.get("family", part.family), str, f"config.{part.name_in_config()}.family"))


def check_value(value: Any, kind: Any, where: str, file: str = "") -> Any:
    """Returns a value as its type has it: an int as a float, a list or `one,two` as a tuple; refuses other types."""
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        # What is too large for a float is out of every range, as infinities are.
        return float(value) if abs(value) < sys.float_info.max else math.inf
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        # An optional value.
        return None if value is None else check_value(value, arguments[0], where, file)
    if origin is collections.abc.Mapping and isinstance(value, Mapping):
        return {
            check_value(key, arguments[0], where, file): check_value(each, arguments[1], f"{where}.{key}", file)
            for key, each in value.items()
        }
    if origin is tuple:
        if isinstance(value, str) and arguments[0] is str:
            # Names may be written one,two; a text with spaces may have commas of its own.
            value = [value] if any(map(str.isspace, value)) else [name for name in value.split(",") if name]
        if isinstance(value, int | float):
            value = [value]
        if isinstance(value, list | tuple):
            return tuple(check_value(element, arguments[0], where, file) for element in value)
    if origin is None and isinstance(kind, type) and type(value) is kind:
        return value
    expected = {collections.abc.Mapping: "dict"}.get(origin) or (
        kind if isinstance(kind, types.GenericAlias) else getattr(kind, "__name__", kind)
    )
    raise UserError(f"{where} is {value!r}, a {type(value).__name__}: it must be a {expected}{_in(file)}")


def closest(name: object, fields: Iterable[str]) -> str:
    """The end of a message about an unknown field: the one it is most like, or all."""
    listed = list(fields)
    close = difflib.get_close_matches(str(name), listed, n=1)
    return f"; did you mean {close[0]}?" if close else f"; the fields are {', '.join(listed)}" if listed else ""


def _checked(value: Any, kind: Any, where: str, file: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return build(kind, value, where, file)
    return check_value(value, kind, where, file)


def _in(file: str) -> str:
    return f" (in {file})" if file else ""
