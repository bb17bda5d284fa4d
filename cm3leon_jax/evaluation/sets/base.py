"""What an evaluation set gives: requests, each with an id and with what is true of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.requests import ImageSource

_HASHED_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Item:
    """One request of an evaluation set, and what is true of it."""

    id: str
    # The fields of a line of a prompts file (`generation/requests.py`), its images as paths or as bytes of files.
    request: Mapping[str, Any]
    # Human captions of the image, human answers to the question, or the caption of an edit's target.
    references: tuple[str, ...] = ()
    # The real image that a prompt describes, or the target of an edit.
    image: ImageSource | None = None
    # The part of the image that an edit should change: white, or transparent.
    mask: ImageSource | None = None
    # The objects that a prompt asks for, in GenEval's form: tag, include, exclude.
    objects: Mapping[str, Any] = field(default_factory=dict)
    # What a question can be answered with, where that is given.
    choices: tuple[str, ...] = ()


@runtime_checkable
class EvaluationSet(Protocol):
    """Reads a data set; a frozen dataclass whose fields are the options, such as the paths of its files."""

    def __call__(self) -> list[Item]:
        """Reads the items, in an order that is always the same.

        Raises:
          UserError: if a file is missing, or not of the published form.
        """
        ...

    @property
    def files(self) -> Sequence[str]:
        """The files that say what is asked and what is true; evaluation.json has their hash."""
        ...


def read_text(file: str | Path) -> str:
    """Reads a text file, without the byte order mark that it may begin with.

    Raises:
      UserError: if there is none, or it is not UTF-8.
    """
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{file} of an evaluation set cannot be read ({why})") from None


def read_json(file: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: if there is none, or it is not JSON.
    """
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} of an evaluation set is not JSON ({error})") from None


def read_json_lines(file: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """Reads the objects of a file of JSON lines, each with the number of its line.

    Raises:
      UserError: if there is none, or a line is no JSON object.
    """
    found = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: not JSON ({error})") from None
        if not isinstance(value, dict):
            raise UserError(f"{file}, line {number}: not an object")
        found.append((number, value))
    return found


def field_of(value: Any, name: str, kind: type, where: str, default: Any = None) -> Any:
    """A field of an object that came from a file.

    Args:
      default: what it is where the object lacks it; None: it must not.

    Raises:
      UserError: if the object has none of that type; begins with `where`.
    """
    found = value.get(name, default) if isinstance(value, Mapping) else None
    if not isinstance(found, kind):
        raise UserError(f"{where} has no field {name} of the published form (it is {found!r:.60})")
    return found


def sha256(files: Sequence[str], ids: Iterable[str] = ()) -> str:
    """The SHA-256 of the bytes of files, one after the other, and of a line for each id of what is measured."""
    digest = hashlib.sha256()
    for file in files:
        with Path(file).open("rb") as stream:
            while block := stream.read(_HASHED_AT_ONCE):
                digest.update(block)
    for name in ids:
        digest.update(f"{name}\n".encode())
    return digest.hexdigest()
