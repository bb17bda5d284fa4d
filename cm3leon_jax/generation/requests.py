"""Reads what users ask: one line of a prompts file per request, for every task.

    {"task": "text_to_image", "prompt": TEXT}                  an image; the task of a line that names none
    {"task": "caption", "image": FILE}                         a text; "prompt" may be an instruction before it
    {"task": "vqa", "prompt": QUESTION, "image": FILE}         a text
    {"task": "infill", "prompt": TEXT, "image": FILE}          the image with "region" generated again
    {"task": "infill_text", "prompt": TEXT, "image": FILE}     the text with every <mask> in it infilled
    {"task": "edit", "prompt": INSTRUCTION, "image": FILE}     the image, changed
    {"task": "instruction", "template": NAME, "fields": {..}}  what any template asks for: a text or an image
    {"task": "continue", "segments": [TEXT, {"image": FILE}]}  the rest of the document: texts and images

"region" is [left, top, right, bottom] as fractions of the image's sides, by default the middle half of its height.
text_to_image takes "objects" with their boxes in pixels, [{"name": TEXT, "box": [left, top, right, bottom]}]. A field
of an instruction is a text or {"image": FILE}, one of its turns a list of them; "wording" is which of the template's
wordings is used (default 0). caption and vqa take "order": "infill" (the default) or "left_to_right". Every task takes
"retrieved", documents that come before the prompt: [{"prompt": TEXT, "image": FILE}]. Files are relative to the folder
of the prompts file.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cm3leon_jax.data.templates.placement import Box
from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.base import ImageTokenizer
from cm3leon_jax.images import UnreadableImage, decode_image
from cm3leon_jax.paths import copied
from cm3leon_jax.squaring import CENTER_CROP, Squaring
from cm3leon_jax.storage.address import scheme_of

# Fields that a task needs, and fields that it takes beside them and beside "retrieved" and "task".
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text_to_image": (("prompt",), ("objects",)),
    "caption": (("image",), ("prompt", "order")),
    "vqa": (("prompt", "image"), ("order",)),
    "infill": (("prompt", "image"), ("region",)),
    "infill_text": (("prompt", "image"), ()),
    "edit": (("prompt", "image"), ()),
    "instruction": (("template", "fields"), ("wording",)),
    "continue": (("segments",), ()),
}
MIDDLE_HALF = (0.0, 0.25, 1.0, 0.75)

# Images held as pixels at a time.
_IMAGES = 64

# Bytes of a line and of a prompts file, at most: far more than any model reads, far less than any memory holds.
_LONGEST_LINE, _LARGEST_FILE = 1 << 20, 1 << 28

Region = tuple[float, float, float, float]

# An image file, or the bytes of one.
ImageSource = Path | bytes

# The value of a template's field; of a field of its turns, one for each turn.
FieldValue = str | ImageSource | tuple[str | ImageSource, ...]


@dataclass(frozen=True)
class Request:
    """What a user asks."""

    # Line of the prompts file, from 1, and number among its records, from 0.
    line: int = 1
    number: int = 0
    task: str = "text_to_image"
    prompt: str = ""
    image: ImageSource | None = None
    region: Region = MIDDLE_HALF
    order: str = "infill"
    segments: tuple[str | ImageSource, ...] = ()
    objects: tuple[tuple[str, Box], ...] = ()
    template: str = ""
    fields: tuple[tuple[str, FieldValue], ...] = ()
    wording: int = 0
    retrieved: tuple[tuple[str, ImageSource], ...] = ()

    @property
    def images(self) -> list[ImageSource]:
        """Every image in it."""
        return [*self.given_images, *(image for _, image in self.retrieved)]

    @property
    def given_images(self) -> list[ImageSource]:
        """The images that it is about: all but those of retrieved documents."""
        named = [self.image, *self.segments, *self.field_values]
        return [image for image in named if isinstance(image, ImageSource)]

    @property
    def field_values(self) -> list[str | ImageSource]:
        """The values of its template's fields, one after the other."""
        return [part for _, found in self.fields for part in (found if isinstance(found, tuple) else (found,))]


@dataclass(frozen=True)
class Failure:
    """A record without a completion, and why, in one line."""

    line: int
    error: str


def read_requests(file: Path) -> tuple[list[Request], list[Failure]]:
    """The records of a prompts file: those that are requests, and those that are not.

    Raises:
      UserError: if the file cannot be read, has no records, or is far larger than prompts are.
    """
    requests: list[Request] = []
    failures: list[Failure] = []
    for line, record in enumerate(_read(file).split(b"\n"), start=1):
        if not record.strip():
            continue
        try:
            number = len(requests) + len(failures)
            requests.append(request_of(_parse(record), file.parent, line, number))
        except UserError as error:
            failures.append(Failure(line, str(error)))
    if not requests and not failures:
        raise UserError(f"the prompts file {file} is empty: write one JSON object per line")
    return requests, failures


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UserError(f"no prompts file {file}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"the prompts file {file} cannot be read ({why}): give a text file of JSON lines") from None
    if len(content) > _LARGEST_FILE:
        raise UserError(
            f"the prompts file {file} holds more than {_LARGEST_FILE >> 20} MiB: give one JSON object per line, and "
            "split what is longer"
        )
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"the prompts file {file} is UTF-16 text: save it as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


def _parse(record: bytes) -> Any:
    if len(record) > _LONGEST_LINE:
        raise UserError(f"longer than {_LONGEST_LINE >> 20} MiB: no prompt that a model could read")
    try:
        return json.loads(record.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start + 1} of the line): save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg} at column {error.colno}): write one object per line") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON that can be read ({error}): write one object per line") from None


def request_of(value: Any, folder: Path, line: int = 1, number: int = 0) -> Request:
    """Makes a request of a record whose images are names relative to `folder`, or bytes; says what is wrong first."""
    if not isinstance(value, Mapping):
        raise UserError('not an object: write one such as {"prompt": "a handwritten seven"}')
    task = value.get("task", "text_to_image")
    if not isinstance(task, str) or task not in TASKS:
        raise UserError(f"task {task!r:.60} is none of {', '.join(TASKS)}")
    needed, optional = TASKS[task]
    known = (*needed, *optional, "retrieved", "task")
    unknown = [name for name in value if name not in known]
    if unknown:
        raise UserError(f"no such field {', '.join(unknown):.60}: the task {task} has {', '.join(known)}")
    fields: dict[str, Any] = {}
    for name in known[:-1]:
        read, meaning = _FIELDS[name]
        if name in value:
            try:
                fields[name] = read(value[name], folder)
            except ValueError:
                raise UserError(f"{name} is {value[name]!r:.60}: give {meaning}") from None
        elif name in needed:
            raise UserError(f"the task {task} needs {name}, {meaning}")
    return Request(line, number, task, **fields)


# Each raises ValueError for a value of another form.


def _text(value: Any, _: Path) -> str:
    if not isinstance(value, str) or has_half_characters(value):
        raise ValueError
    return value


def _image(value: Any, folder: Path) -> ImageSource:
    if isinstance(value, bytes):
        return value
    if not _text(value, folder) or "\0" in value:
        raise ValueError
    return copied(value, "image") if scheme_of(value) else folder / value


def _region(value: Any, _: Path) -> Region:
    left, top, right, bottom = _items(value)
    if not all(isinstance(fraction, int | float) and 0 <= fraction <= 1 for fraction in value):
        raise ValueError
    return float(left), float(top), float(right), float(bottom)


def _order(value: Any, _: Path) -> str:
    if value not in ("infill", "left_to_right"):
        raise ValueError
    return value


def _segments(value: Any, folder: Path) -> tuple[str | ImageSource, ...]:
    return tuple(_segment(part, folder) for part in _items(value))


def _segment(value: Any, folder: Path) -> str | ImageSource:
    if isinstance(value, dict) and value.keys() == {"image"}:
        return _image(value["image"], folder)
    return _text(value, folder)


def _objects(value: Any, folder: Path) -> tuple[tuple[str, Box], ...]:
    found = []
    for part in _items(value):
        if not isinstance(part, dict) or part.keys() != {"name", "box"}:
            raise ValueError
        left, top, right, bottom = _items(part["box"])
        if not all(type(side) is int and side >= 0 for side in part["box"]) or right <= left or bottom <= top:
            raise ValueError
        found.append((_text(part["name"], folder), (left, top, right, bottom)))
    return tuple(found)


def _template_fields(value: Any, folder: Path) -> tuple[tuple[str, FieldValue], ...]:
    if not isinstance(value, Mapping):
        raise ValueError
    return tuple(
        (_text(name, folder), _segments(part, folder) if isinstance(part, list | tuple) else _segment(part, folder))
        for name, part in value.items()
    )


def _wording(value: Any, _: Path) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _retrieved(value: Any, folder: Path) -> tuple[tuple[str, ImageSource], ...]:
    if not all(isinstance(document, dict) and document.keys() == {"prompt", "image"} for document in _items(value)):
        raise ValueError
    return tuple((_text(document["prompt"], folder), _image(document["image"], folder)) for document in value)


def _items(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError
    return value


# What reads a field, and what it has to be.
_FIELDS: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "prompt": (_text, "a text"),
    "image": (_image, "the name of a file"),
    "region": (_region, "[left, top, right, bottom] as fractions of the image's sides, 0 to 1"),
    "order": (_order, '"infill" or "left_to_right"'),
    "segments": (_segments, 'a list of texts and {"image": "file.png"}'),
    "objects": (_objects, 'a list of {"name": "a text", "box": [left, top, right, bottom]}, in pixels'),
    "template": (_text, "the name of a template"),
    "fields": (_template_fields, 'an object of texts, {"image": "file.png"} and lists of them'),
    "wording": (_wording, "the number of a wording, from 0"),
    "retrieved": (_retrieved, 'a list of {"prompt": "a text", "image": "file.png"}'),
}


def has_half_characters(text: str) -> bool:
    """JSON can spell halves of surrogate pairs, which no tokenizer takes and no file can hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def read_images(
    sources: Iterable[ImageSource], image_tokenizer: ImageTokenizer, squaring: Squaring = CENTER_CROP
) -> dict[ImageSource, Int[np.ndarray, "codes"] | str]:
    """The codes of each image, or, where it cannot be read, why; an image that is named twice is read once."""
    config = image_tokenizer.config
    distinct = list(dict.fromkeys(sources))
    found: dict[ImageSource, Int[np.ndarray, "codes"] | str] = {}
    for start in range(0, len(distinct), _IMAGES):
        pixels = {}
        for source in distinct[start : start + _IMAGES]:
            try:
                pixels[source] = decode_image(read_image(source), config.resolution, config.in_channels, squaring)
            except FileNotFoundError:
                found[source] = f"no image {source!s}"
            except (OSError, ValueError, UnreadableImage) as error:
                name = "an image" if isinstance(source, bytes) else f"the image {source}"
                found[source] = f"{name} cannot be read ({error}): give a PNG, a JPEG or the like"
        if pixels:
            codes = image_tokenizer.encode(np.stack(list(pixels.values())), min(_IMAGES, len(distinct)))
            found |= dict(zip(pixels, codes, strict=True))
    return found


def read_image(source: ImageSource) -> bytes:
    """The bytes of an image file; an OSError or ValueError if there is none, or it is no ordinary file."""
    if isinstance(source, bytes):
        return source
    if source.exists() and not source.is_file():
        raise ValueError("no ordinary file")
    return source.read_bytes()
