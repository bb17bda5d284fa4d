"""Reads and writes records: JSON files of the shape of a `TypedDict`, optionally with a checksum of their content.

Keys that a shape does not name are kept.
"""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_json, write_json

CHECKSUM = "checksum"

# Larger numbers count nothing that is stored.
Count = Annotated[int, Field(ge=0, lt=1 << 60)]
PositiveCount = Annotated[int, Field(ge=1, lt=1 << 60)]
Checksum = Annotated[int, Field(ge=0, lt=1 << 32)]
Name = Annotated[str, Field(min_length=1)]


def read_record(path: str | Path, what: str, shape: Any, fix: str, sealed: bool = False) -> Any:
    """Reads a JSON file of a stated shape, a `TypedDict`.

    `what` names it in messages, which end with `fix`. Where `write_record` wrote it, it is `sealed` by a checksum.
    """
    value = read_json(path, what)
    if sealed and isinstance(value, dict) and value.pop(CHECKSUM, None) != _checksum(value):
        raise UserError(f"{what} is damaged: {path} was changed after it was written; {fix}")
    return check_shape(value, shape, what, path, fix)


def check_shape(value: Any, shape: Any, what: str, path: str | Path, fix: str) -> Any:
    """What a JSON value is as a `TypedDict` or dataclass; the other arguments and errors are those of `read_record`."""
    try:
        return _adapter(shape).validate_json(json.dumps(value, allow_nan=False), strict=True, extra="allow")
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg'].lower()}"
    # Of a number that is not finite, or of the config's own checks.
    except (ValueError, UserError) as error:
        reason = str(error)
    raise UserError(f"{what} is damaged: {path}: {reason}; {fix}")


def write_record(path: str | Path, value: dict[str, Any]) -> None:
    """Writes a JSON object with a checksum of all its content, order included."""
    value = {name: part for name, part in value.items() if name != CHECKSUM}
    write_json(path, value | {CHECKSUM: _checksum(value)})


def _checksum(value: dict[str, Any]) -> int:
    # JSON has turned tuples into lists and keys into strings when the file is read.
    return zlib.crc32(json.dumps(value).encode())


_adapter = functools.cache(TypeAdapter)
