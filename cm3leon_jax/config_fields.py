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
        text = f"{self.type}. {self.help}".rstrip()
        return f"  --config.{self.name}={self.default}\n" + textwrap.fill(
            text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6
        )


def config_fields(parts: Sequence[str]) -> list[ConfigField]:
    """Lists the fields of some parts of the config by name; a part may be a field of the config itself.

    Of a part with families these are the fields of the default family.
    """
    whole, values = Config(), {field.name: field for field in _fields_of(Config(), "")}
    return [
        field
        for part in parts
        for field in ([values[part]] if part in values else _fields_of(getattr(whole, part), f"{part}."))
    ]


def _fields_of(part: Any, prefix: str) -> Iterator[ConfigField]:
    """Lists the fields of a part, and those of the parts in it except where it is the whole config."""
    cls: Any = type(part)
    hints, ranges, comments = typing.get_type_hints(cls), ranges_of(cls), _comments(cls)
    for field in dataclasses.fields(part):
        name, value = field.name, getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            if prefix:
                yield from _fields_of(value, f"{prefix}{name}.")
            continue
        kind = hints[name]
        text = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        text = text.replace("typing.", "").replace("collections.abc.", "").replace("Mapping[", "dict[")
        if name in ranges:
            text += f", {ranges[name][1]}"
        yield ConfigField(prefix + name, text, value, comments.get(name, ""))


def _comments(cls: type) -> dict[str, str]:
    """Reads the comment above each field of a dataclass from its source, and from those of its bases."""
    found: dict[str, str] = {}
    for base in cls.__bases__:
        if dataclasses.is_dataclass(base):
            found |= _comments(base)
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    for node in typing.cast(ast.ClassDef, ast.parse(source).body[0]).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#"):
                    break
                above.insert(0, line.strip().lstrip("# "))
            found[node.target.id] = " ".join(above)
    return found
