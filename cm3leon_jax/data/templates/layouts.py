"""Layouts of documents: how the fields of an example become texts and images in reading order.

Generation asks by the same layouts (generation/requests.py), so a corpus that is made with them teaches what
`cm3leon generate` asks for:

    layout               document
    CAPTION              CAPTION <break> IMAGE
    INSTRUCTED_CAPTION   INSTRUCTION CAPTION <break> IMAGE
    QUESTION             Question: QUESTION Answer: ANSWER <break> IMAGE
    EDIT                 Edit first image following the instruction <break> IMAGE <break> INSTRUCTION <break> EDITED

A layout of one text and one image also stands the other way around, `QUESTION.image_first()`: that is what "order":
"left_to_right" asks for. A seqio task has it among its preprocessors:
`functools.partial(layouts.documents, layout=layouts.QUESTION, keys={"image": "photo"})`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class ImageField:
    """A segment that is an image: the name of its field."""

    name: str


@dataclass(frozen=True)
class Layout:
    """The segments of a document, in reading order: texts with {fields} in them, and images."""

    segments: tuple[str | ImageField, ...]

    def image_first(self) -> Layout:
        """The same with its one image before its one text."""
        if [isinstance(segment, ImageField) for segment in self.segments] != [False, True]:
            raise ValueError("only a layout of one text and one image can stand the other way around")
        return Layout(self.segments[::-1])

    def text_before(self, field: str, **fields: str) -> str:
        """The text before a field, without the space that belongs to the field's first word."""
        (text,) = [segment for segment in self.segments if isinstance(segment, str) and f"{{{field}}}" in segment]
        return text.partition(f"{{{field}}}")[0].format(**fields).rstrip()


EDIT_TASK = "Edit first image following the instruction"

CAPTION = Layout(("{caption}", ImageField("image")))
INSTRUCTED_CAPTION = Layout(("{instruction} {caption}", ImageField("image")))
QUESTION = Layout(("Question: {question} Answer: {answer}", ImageField("image")))
EDIT = Layout((EDIT_TASK, ImageField("image"), "{instruction}", ImageField("edited")))


def documents(dataset: tf.data.Dataset, layout: Layout, keys: Mapping[str, str] | None = None) -> tf.data.Dataset:
    """A seqio preprocessor: makes one document of each example.

    An example has a string for each field of a text, which is stripped, and for each image the bytes of its file, or
    its pixels as uint8 [height, width, channels]. `keys` says where a field is found, if not under its own name.
    """
    import tensorflow as tf

    keys = keys or {}

    def feature(example: Mapping[str, Any], field: str) -> tf.Tensor:
        return functools.reduce(lambda value, part: value[part], keys.get(field, field).split("/"), example)

    def image(example: Mapping[str, Any], field: str) -> tf.Tensor:
        found = feature(example, field)
        return tf.io.encode_png(found) if found.dtype == tf.uint8 else found

    def text(example: Mapping[str, Any], segment: str) -> tf.Tensor:
        parts: list[Any] = []
        for literal, field, _, _ in Formatter().parse(segment):
            parts += [literal, *([] if field is None else [tf.strings.strip(feature(example, field))])]
        return tf.strings.join(parts)

    def document(example: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        segments = [
            image(example, segment.name) if isinstance(segment, ImageField) else text(example, segment)
            for segment in layout.segments
        ]
        is_image = [isinstance(segment, ImageField) for segment in layout.segments]
        return {"segments": tf.stack(segments), "is_image": tf.constant(is_image)}

    return dataset.map(document, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
