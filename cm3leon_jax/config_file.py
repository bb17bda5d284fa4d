"""Reads a config file and `--config.a.b=value` overrides into a `Config`; names the field when something is wrong."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import math
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import write_json


def load(file: str, workdir: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Runs `get_config()` of a config file, applies overrides, checks every field, and puts `workdir` into the paths.

    Args:
      file: `configs/NAME.py`, or `configs/NAME.py:VARIANT`, which calls `get_config("VARIANT")`.
      workdir: replaces `{workdir}` in every path.
      overrides: texts by dotted field, such as {"model.num_layers": "4"}.
    """
    values: dict[str, Any] = _run(file).to_dict()
    for name, text in (overrides or {}).items():
        *parents, last = name.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise UserError(f"--config.{name}: config.{parent} is a value, it has no fields")
        section[last] = _parse(text, _field_type(Config, name, f"--config.{name}"))
    if "://" in workdir:
        raise UserError(f"--workdir={workdir}: only folders of a mounted file system can be written; mount the bucket")
    config = _build(Config, values, "config", file)
    return _fill_paths(config, workdir)


def save(config: Config, path: Path) -> None:
    """Writes the resolved config as JSON."""
    write_json(path, dataclasses.asdict(config))


def _run(file: str) -> ml_collections.ConfigDict:
    name, _, variant = file.partition(":")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"no config file {path}")
    # A config file imports its parent as `from configs import parent`.
    root = str(path.resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = module.get_config
        takes_variant = bool(inspect.signature(get_config).parameters)
        if variant and not takes_variant:
            raise UserError(f"{path}: get_config() takes no variant, but {variant!r} was asked for")
        config = get_config(variant) if variant else get_config()
    except UserError:
        raise
    except AttributeError as error:
        raise UserError(f"{path}: {error}; a config file defines get_config() and returns a ConfigDict") from None
    except Exception as error:
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}, not an ml_collections.ConfigDict")
    return config


def _field_type(cls: type, name: str, where: str) -> Any:
    kind: Any = cls
    for part in name.split("."):
        if not dataclasses.is_dataclass(kind):
            raise UserError(f"{where}: {part} is no field of a {getattr(kind, '__name__', kind)}")
        hints = typing.get_type_hints(kind)
        if part not in hints:
            raise UserError(f"{where}: no such field{_closest(part, hints)}")
        kind = hints[part]
    if dataclasses.is_dataclass(kind):
        raise UserError(f"{where}: this is a whole part; set one of {', '.join(typing.get_type_hints(kind))}")
    return kind


def _parse(text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _build(cls: type, values: Mapping[str, Any], where: str, file: str) -> Any:
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise UserError(f"{where}.{name}: no such field{_closest(name, hints)} (in {file})")
    checked = {
        name: _build(hints[name], value, f"{where}.{name}", file)
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping)
        else _check(value, hints[name], f"{where}.{name}", file)
        for name, value in values.items()
    }
    return cls(**checked)


def _check(value: Any, kind: Any, where: str, file: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        # What is too large for a float is out of every range, as infinities are.
        return float(value) if abs(value) < sys.float_info.max else math.inf
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        item = typing.get_args(kind)[0]
        return tuple(_check(element, item, where, file) for element in value)
    if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and type(value) is kind:
        return value
    name = getattr(kind, "__name__", kind) if not isinstance(kind, types.GenericAlias) else kind
    raise UserError(f"{where} is {value!r}, a {type(value).__name__}: it must be a {name} (in {file})")


def _closest(name: str, hints: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, hints, n=1)
    return f"; did you mean {close[0]}?" if close else f"; the fields are {', '.join(hints)}"


def _fill_paths(value: Any, workdir: str) -> Any:
    if isinstance(value, str):
        return value.replace("{workdir}", workdir)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: _fill_paths(getattr(value, f.name), workdir) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value
