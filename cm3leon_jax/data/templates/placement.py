"""Images from lists of objects, and images of written words (arXiv 2309.02591, Table 5 and figure 15)."""

from __future__ import annotations

from collections.abc import Iterable

from cm3leon_jax.data.templates.template import Template

OBJECTS = Template(
    ("Generate high quality image of {caption} with segmentations {objects} <break> {image}",), targets=("image",)
)
WRITTEN_TEXT = Template(('draw "{text}" <break> {image}',), targets=("image",))

# [left, top, right, bottom] in pixels of the image as the model sees it.
Box = tuple[int, int, int, int]


def object_list(objects: Iterable[tuple[str, Box]]) -> str:
    """The field `objects`: names with their boxes, "sink at location (10, 20) -> (40, 60), mirror at .."."""
    return ", ".join(
        f"{name} at location ({left}, {top}) -> ({right}, {bottom})" for name, (left, top, right, bottom) in objects
    )
