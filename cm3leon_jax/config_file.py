"""Reads a config file and `--config.a.b=value` overrides into a `Config`; names the field when something is wrong."""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import importlib.machinery
import importlib.util
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from cm3leon_jax import paths
from cm3leon_jax.config import Config
from cm3leon_jax.config_part import field_types
from cm3leon_jax.config_values import build, check_value, closest, of_family
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import check_format, read_object, write_json
from cm3leon_jax.ranges import annotation
from cm3leon_jax.registry import import_module
from cm3leon_jax.shipped import shipped_configs, shipped_folder
from cm3leon_jax.storage import mirror
from cm3leon_jax.storage.address import SCHEMES, address_of, scheme_of

# Version of a run's config.json; 0.1 of this package wrote none.
FORMAT_VERSION = 2

# Of their folders, only what is needed is copied, when it is.
_OF_RUNS = ("config.train.init_from", "config.train.compilation_cache")


def load(file: str, workdir: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Reads a config file, applies overrides, checks every field, and puts `workdir` into the paths.

    Args:
      file: `configs/NAME.py`, whose `get_config()` is run; `configs/NAME.py:VARIANT`, which calls
        `get_config("VARIANT")`; NAME alone, for a config of this package; or the config.json of a run.
      workdir: replaces `{workdir}` in every path.
      overrides: texts by dotted field, such as {"model.num_layers": "4"}.
    """
    path, variant = find(file)
    _make_importable(path.resolve().parent)
    values = _read_json(path) if path.suffix == ".json" else _run(path, variant)
    overrides = overrides or {}
    if "modules" in overrides:
        _override(values, "modules", overrides["modules"])
    for module in check_value(values.get("modules", ()), tuple[str, ...], "config.modules", file):
        import_module(module, "config.modules")
    # The family of a part decides which other fields it has.
    for name in sorted(overrides, key=lambda name: not name.endswith(".family")):
        _override(values, name, overrides[name])
    config = build(Config, values, "config", file)
    return _fill_paths(config, paths.local(workdir, "--workdir"))


def _override(values: dict[str, Any], name: str, text: str) -> None:
    """Sets the field of a dotted name in nested dicts."""
    *parents, last = name.split(".")
    section: Any = values
    defaults: Any = Config()
    for parent in parents:
        defaults = getattr(defaults, parent, None)
        # One entry of a dict changes, the others stay.
        section = section.setdefault(parent, copy.deepcopy(defaults) if isinstance(defaults, dict) else {})
        if not isinstance(section, dict):
            raise UserError(f"--config.{name}: config.{parent} is a value, it has no fields")
    section[last] = _parse(text, _field_type(values, name, f"--config.{name}"))


def save(config: Config, path: Path) -> None:
    """Writes the config as JSON that `load` takes from anywhere: with `{workdir}` in the paths in the file's folder."""
    values = dataclasses.asdict(_empty_paths(config, path.parent.absolute()))
    write_json(path, {"format_version": FORMAT_VERSION} | values)


def find(file: str) -> tuple[Path, str]:
    """The file that `--config=FILE` means, and the variant after its name."""
    copy, variant = paths.copied(file, "--config"), ""
    if not copy.is_file():
        # The name of a folder, or the scheme of an address, may have a colon, too.
        folder, slash, last = file.rpartition("/")
        last, colon, variant = last.partition(":")
        copy = paths.copied(folder + slash + last, "--config") if colon else copy
    name = str(copy)
    named = {path.stem: path for path in shipped_configs()}
    for path in (Path(name), shipped_folder() / name, named.get(name, Path(name))):
        if path.is_file():
            return path, variant
    names = sorted(named)
    close = difflib.get_close_matches(Path(name).stem, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"give a path, or one of {', '.join(names)}"
    raise UserError(f"no config file {name}: {hint}")


def default_workdir(file: str) -> Path:
    """The folder of a run whose config file this is: that of its config.json, or runs/NAME."""
    path, _ = find(file)
    return path.parent if path.suffix == ".json" else Path("runs") / path.stem


def _read_json(path: Path) -> dict[str, Any]:
    """Reads the config.json of a run."""
    values = read_object(path, "the config")
    if "corpus" in values:
        fix = "start from the config file of the run, with another --workdir"
        check_format(values, FORMAT_VERSION, f"the config {path}", fix)
        del values["format_version"]
    return values


def _run(path: Path, variant: str) -> dict[str, Any]:
    """Returns the result of a config file's `get_config()` as plain dicts."""
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no config file: its name ends in .py, or it is the config.json of a run")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path}: a config file defines get_config() and returns a ConfigDict")
        takes_variant = bool(inspect.signature(module.get_config).parameters)
        if variant and not takes_variant:
            raise UserError(f"{path}: get_config() takes no variant, but {variant!r} was asked for")
        config = module.get_config(variant) if variant else module.get_config()
        if not isinstance(config, ml_collections.ConfigDict):
            raise UserError(f"{path}: get_config() returned {type(config).__name__}, not an ml_collections.ConfigDict")
        return config.to_dict()
    except (UserError, KeyboardInterrupt):
        raise
    # A SystemExit, too, would end the command without a message.
    except BaseException as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}," if lines else f"{path}"
        raise UserError(f"{where} cannot be run: {type(error).__name__}: {error}") from None


def _make_importable(folder: Path) -> None:
    """Lets a config file import the modules next to it and the shipped configs, both as `from configs import NAME`.

    Its folder comes last in `sys.path`, where modules of the user may be, so that an `emoji.py` there hides no package.
    """
    # The last is where `examples` is: processes that this one starts inherit the path, and no module made here.
    for importable in (folder, folder.parent, shipped_folder()):
        if str(importable) not in sys.path:
            sys.path.append(str(importable))
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        del sys.modules[name]
    examples = shipped_folder() / "examples"
    with_configs = sorted({str(path.parent) for path in shipped_configs()})
    _make_namespace("configs", [str(folder), *(str(Path(entry) / "configs") for entry in sys.path), *with_configs])
    if "examples" not in sys.modules:
        _make_namespace("examples", [str(examples)])


def _make_namespace(name: str, folders: Sequence[str]) -> None:
    """Makes a package of all modules in some folders."""
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = list(folders)
    sys.modules[name] = importlib.util.module_from_spec(spec)


def _field_type(values: Mapping[str, Any], name: str, where: str) -> Any:
    """The type of the field of a dotted name; `values` say of which family a part is."""
    kind: Any = Config
    for part in name.split("."):
        if typing.get_origin(kind) is Mapping:
            kind = typing.get_args(kind)[1]
            continue
        if kind is Any:
            continue
        if not dataclasses.is_dataclass(kind):
            raise UserError(f"{where}: {part} is no field of a {getattr(kind, '__name__', kind)}")
        kind = of_family(kind, values)
        hints = field_types(kind)
        if part not in hints:
            raise UserError(f"{where}: no such field{closest(part, hints)}")
        kind, values = hints[part], values.get(part, {})
    if dataclasses.is_dataclass(kind):
        raise UserError(f"{where}: this is a whole part; set one of {', '.join(field_types(kind))}")
    return kind


def _parse(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and text != "None":
        kind = typing.get_args(kind)[0]
    if kind is str:
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    if kind == tuple[str, ...]:
        return value if isinstance(value, list | tuple | str) else text
    return value


def _fill_paths(config: Config, workdir: str) -> Config:
    """Replaces `{workdir}` in every text, and checks the paths."""

    def filled(text: str, kind: paths.IsPath | None, name: str) -> str:
        text = text.replace("{workdir}", workdir)
        if kind is None and scheme_of(text) in SCHEMES:
            # An option of something that the config names, such as the file of an evaluation set.
            return paths.local(text, name)
        return paths.local_in_field(text, kind, name) if kind else text

    return _with_texts(config, filled, "config")


def _empty_paths(config: Config, workdir: Path) -> Config:
    """Puts `{workdir}` for `workdir` into the paths, and makes the others absolute."""

    def emptied(text: str, kind: paths.IsPath | None, name: str) -> str:
        if kind is None or not text.startswith(kind.prefix) or not text.removeprefix(kind.prefix):
            return address_of(text) or text
        if scheme_of(text.removeprefix(kind.prefix)):
            return text
        path = Path(text.removeprefix(kind.prefix)).absolute()
        inside = path.is_relative_to(workdir)
        return kind.prefix + (f"{{workdir}}/{path.relative_to(workdir)}" if inside else address_of(path) or str(path))

    return _with_texts(config, emptied, "config")


def stored_values(config: Config) -> dict[str, Any]:
    """The values of a config as records hold them: with addresses in buckets, and not the paths of their copies."""
    return dataclasses.asdict(_with_texts(config, lambda text, kind, name: address_of(text) or text, "config"))


def copy_inputs(config: Config, parts: Collection[str]) -> None:
    """Copies what is in buckets of the files and folders that these parts of a config name, except folders of runs."""

    def copied(text: str, kind: paths.IsPath | None, name: str) -> str:
        if address_of(text) and name not in _OF_RUNS:
            mirror.refresh(Path(text))
        return text

    for part in parts:
        _with_texts(getattr(config, part), copied, f"config.{part}")


def _with_texts(
    value: Any, changed: Callable[[str, paths.IsPath | None, str], str], where: str, kind: paths.IsPath | None = None
) -> Any:
    """A part or value of a config with each of its texts replaced by `changed(text, kind of path, name)`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {}
        for name, hint in field_types(type(value), include_extras=True).items():
            _, path = annotation(hint, paths.IsPath) or (str, None)
            changes[name] = _with_texts(getattr(value, name), changed, f"{where}.{name}", path)
        return dataclasses.replace(value, **changes)
    if isinstance(value, dict):
        return {name: _with_texts(each, changed, f"{where}.{name}") for name, each in value.items()}
    return changed(value, kind, where) if isinstance(value, str) else value
