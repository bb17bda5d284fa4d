"""Lists the fields of the config with type, default and meaning, for `--help` and shell completion."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from cm3leon_jax.config import Config
from cm3leon_jax.ranges import ranges_of


@dataclasses.dataclass(frozen=True)
class ConfigField:
    """A field of the config."""

    # Dotted, such as "model.num_layers".
    name: str
    type: str
    default: Any
    # The comment above it.
    help: str

    def __str__(self) -> str:
        """Formats it for `--help`."""
        text = f"{self.type}. {self.help}".rstrip()
        return f"  --config.{self.name}={self.default}\n" + textwrap.fill(
            text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6
        )


def config_fields(parts: Sequence[str]) -> list[ConfigField]:
    """Lists the fields of some parts of the config, and values of the config itself, by name."""
    hints, whole = typing.get_type_hints(Config), list(_fields_of(Config, ""))
    found: list[ConfigField] = []
    for part in parts:
        if dataclasses.is_dataclass(hints[part]):
            found += _fields_of(hints[part], f"{part}.")
        else:
            found += [field for field in whole if field.name == part]
    return found


def _fields_of(cls: type, prefix: str) -> Iterator[ConfigField]:
    hints, ranges, comments = typing.get_type_hints(cls), ranges_of(cls), _comments(cls)
    for field in dataclasses.fields(cls):
        kind, name = hints[field.name], field.name
        if dataclasses.is_dataclass(kind):
            if prefix:
                yield from _fields_of(typing.cast(type, kind), f"{prefix}{name}.")
            continue
        has_factory = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if has_factory else field.default
        text = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        text = text.replace("typing.", "").replace("collections.abc.", "").replace("Mapping[", "dict[")
        if name in ranges:
            text += f", {ranges[name][1]}"
        yield ConfigField(prefix + name, text, default, comments.get(name, ""))


def _comments(cls: type) -> dict[str, str]:
    """Reads the comment above each field of a dataclass from its source."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#"):
                    break
                above.insert(0, line.strip().lstrip("# "))
            found[node.target.id] = " ".join(above)
    return found
