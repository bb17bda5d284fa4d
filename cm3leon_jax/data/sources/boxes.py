"""Boxes of objects in the pixels of an image as the image tokenizer sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cm3leon_jax.data.sources.examples import BadRow
from cm3leon_jax.data.templates.placement import Box, object_list
from cm3leon_jax.errors import UserError
from cm3leon_jax.squaring import Squaring

# What is left of an object after the crop is still the object if it is this fraction of its box.
_LEAST_VISIBLE = 0.25

# As JSON has them.
Number = int | float


def boxes_in_view(
    objects: Iterable[tuple[str, Sequence[Number]]],
    width: Number,
    height: Number,
    resolution: int,
    squaring: Squaring,
) -> list[tuple[str, Box]]:
    """Names and boxes [left, top, right, bottom] of an image of a size as they are in its square.

    Boxes are clipped at the square; those of which little is left are dropped. The largest come first.
    """
    if not (width > 0 and height > 0):
        raise BadRow("image without a size")
    scaled_width, scaled_height, left, top = squaring.frame(width, height, resolution)
    found: list[tuple[int, str, Box]] = []
    for name, (x0, y0, x1, y1) in objects:
        name = " ".join(name.split())
        across = [x * scaled_width / width - left for x in (x0, x1)]
        down = [y * scaled_height / height - top for y in (y0, y1)]
        area = (across[1] - across[0]) * (down[1] - down[0])
        # NaN compares with nothing.
        if not name or not (across[1] > across[0] and down[1] > down[0]):
            continue
        box = (*(_clipped(each[0], resolution) for each in (across, down)),)
        box += (*(_clipped(each[1], resolution) for each in (across, down)),)
        visible = (box[2] - box[0]) * (box[3] - box[1])
        if visible > 0 and visible >= _LEAST_VISIBLE * area:
            found.append((visible, name, (box[0], box[1], box[2], box[3])))
    found.sort(key=lambda each: -each[0])
    return [(name, box) for _, name, box in found]


def _clipped(value: Number, resolution: int) -> int:
    return round(min(max(value, 0), resolution))


def objects_field(
    objects: Iterable[tuple[str, Sequence[Number]]],
    width: Number,
    height: Number,
    resolution: int,
    squaring: Squaring,
    most: int,
) -> str:
    """The field `objects` of the template of that name; a `BadRow` if no object is in view."""
    found = boxes_in_view(objects, width, height, resolution, squaring)[:most]
    if not found:
        raise BadRow("no object in view")
    return object_list(found)


def needed(resolution: int | None, what: str) -> int:
    """The resolution that a reader needs; a `UserError` where none is set."""
    if resolution is None:
        raise UserError(
            f"{what} needs the side of images as the image tokenizer sees them: set "
            "config.corpus.annotations.resolution to config.image_tokenizer.resolution"
        )
    return resolution
