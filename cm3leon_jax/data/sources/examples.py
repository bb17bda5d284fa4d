"""Examples as a reader of annotations or rows gives them, before their images are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class ImageReference(NamedTuple):
    """An image that is read later: a file, named from the source's folder on, or one in a parquet file or a tar."""

    file: str
    # Of a parquet file: the column, the row, and which of the cell's images.
    column: str = ""
    row: int = 0
    number: int = 0
    # Of a tar: where the image's bytes begin, and how many they are.
    start: int = 0
    size: int = 0
    # Of a TIFF of several pages: which of them, and how many there have to be.
    page: int = 0
    num_pages: int = 0
    # The map that is made of the image (structure_maps.py), if not the image itself, and the JSON of its options.
    structure: str = ""
    options: str = ""


class NamedImage(NamedTuple):
    """An image that a document names, and that has to be found: by its URL, or the name of its file."""

    url: str = ""
    name: str = ""


Value = str | ImageReference
Values = Mapping[str, Value | Sequence[Value]]


@dataclass(frozen=True)
class Example:
    """An instruction, with a list for each field that comes once per turn, or a document of texts and images."""

    # The file and the row or entry, for reports.
    where: str
    # Empty for a document that is no instruction: the values are its segments, in their order.
    template: str
    values: Values
    # Examples of a group are on the same side of the split: all questions about an image.
    group: str
    # The split that the publisher says, if any.
    split: str | None = None
    # Pairs of images that must be the same: the source of a turn, and the target of the turn before.
    equal: tuple[tuple[ImageReference, ImageReference], ...] = ()
    # The named values of the row that it is from, which a config may set bounds of.
    row: Mapping[str, Any] = field(default_factory=dict)


class BadRow(Exception):
    """A row or entry that gives no example; its message is the kind of fault."""


class UnwantedRow(BadRow):
    """A row without a fault that the config does not want; its message says why."""


def value_of(row: Any, name: str, *kinds: type) -> Any:
    """The value of a row under a name, or a `BadRow` where it has none of these types."""
    found = row.get(name) if isinstance(row, dict) else None
    if not isinstance(found, kinds) or isinstance(found, bool):
        raise BadRow(f"no {name} of the published form")
    return found
