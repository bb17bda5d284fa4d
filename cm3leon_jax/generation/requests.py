"""What a person asks for: one line of a prompts file, for every task.

    {"task": "text_to_image", "prompt": TEXT}                  an image; the task of a line that names none
    {"task": "caption", "image": FILE}                         a text; "prompt" may be an instruction in front of it
    {"task": "vqa", "prompt": QUESTION, "image": FILE}         a text
    {"task": "infill", "prompt": TEXT, "image": FILE}          the image with "region" drawn anew
    {"task": "infill_text", "prompt": TEXT, "image": FILE}     the text with every <mask> in it filled in
    {"task": "edit", "prompt": INSTRUCTION, "image": FILE}     the image, changed
    {"task": "continue", "segments": [TEXT, {"image": FILE}]}  the rest of the document: texts and images

"region" is [left, top, right, bottom] in shares of the image's sides, the middle half of its height by default.
caption and vqa take "order": "infill" (the default) or "left_to_right". Every task takes "retrieved", documents that
stand in front: [{"prompt": TEXT, "image": FILE}]. Files are named from the folder of the prompts file.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from cm3leon_jax.data.templates import layouts
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation import prompts
from cm3leon_jax.image_tokenizers.base import ImageTokenizer
from cm3leon_jax.image_tokenizers.config import ImageTokenizerConfig
from cm3leon_jax.images import UnreadableImage, decode_image
from cm3leon_jax.vocabulary import Vocabulary

# Fields that a task needs, and fields that it takes beside them and beside "task" and "retrieved".
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text_to_image": (("prompt",), ()),
    "caption": (("image",), ("prompt", "order")),
    "vqa": (("prompt", "image"), ("order",)),
    "infill": (("prompt", "image"), ("region",)),
    "infill_text": (("prompt", "image"), ()),
    "edit": (("prompt", "image"), ()),
    "continue": (("segments",), ()),
}
_MEANINGS = {
    "prompt": "a text",
    "image": "the name of a file",
    "region": "[left, top, right, bottom] in shares of the image's sides, 0 to 1",
    "order": '"infill" or "left_to_right"',
    "segments": 'a list of texts and {"image": "file.png"}',
    "retrieved": 'a list of {"prompt": "a text", "image": "file.png"}',
}
MIDDLE_HALF = (0.0, 0.25, 1.0, 0.75)

# Images that are held as pixels at a time.
_IMAGES = 64

# Bytes of a line and of a prompts file, at most: far more than any model reads, far less than any memory holds.
_LONGEST_LINE, _LARGEST_FILE = 1 << 20, 1 << 28

Region = tuple[float, float, float, float]


@dataclass(frozen=True)
class Request:
    """One line of a prompts file."""

    # Line of the file, from 1, and place among its records, from 0.
    line: int
    number: int
    task: str = "text_to_image"
    prompt: str = ""
    image: Path | None = None
    region: Region = MIDDLE_HALF
    order: str = "infill"
    segments: tuple[str | Path, ...] = ()
    retrieved: tuple[tuple[str, Path], ...] = ()

    @property
    def images(self) -> list[Path]:
        """Every image that it names."""
        named = [self.image, *self.segments, *(image for _, image in self.retrieved)]
        return [path for path in named if isinstance(path, Path)]


@dataclass(frozen=True)
class Failure:
    """A record that cannot be answered, and why, in one line."""

    line: int
    error: str

    @classmethod
    def of(cls, line: int, error: UserError) -> Failure:
        """What a record's mistake says."""
        return cls(line, str(error))


def read_requests(file: Path) -> tuple[list[Request], list[Failure]]:
    """The records of a prompts file: those that can be read as requests, and those that cannot.

    Raises:
      UserError: if the file cannot be read, has no records, or is far larger than prompts are.
    """
    requests, failures = [], []
    records = (pair for pair in enumerate(_lines(file), start=1) if pair[1].strip())
    for number, (line, record) in enumerate(records):
        try:
            requests.append(_request(record, line, number, file.parent))
        except UserError as error:
            failures.append(Failure.of(line, error))
    if not requests and not failures:
        raise UserError(f"the prompts file {file} is empty: write one JSON object a line")
    return requests, failures


def _lines(file: Path) -> Iterator[bytes]:
    """The lines of a prompts file; of one that is too long for a record, the beginning."""
    num_bytes, is_within_a_line = 0, False
    try:
        with file.open("rb") as bytes_of:
            while part := bytes_of.readline(_LONGEST_LINE + 1):
                if not num_bytes:
                    if part.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        raise UserError(f"the prompts file {file} is UTF-16 text: save it as UTF-8")
                    part = part.removeprefix(codecs.BOM_UTF8)
                num_bytes += max(1, len(part))
                if num_bytes > _LARGEST_FILE:
                    raise UserError(
                        f"the prompts file {file} holds more than {_LARGEST_FILE >> 20} MiB: give one JSON object a "
                        "line, and split what is longer"
                    )
                if not is_within_a_line:
                    yield part
                is_within_a_line = not part.endswith(b"\n")
    except FileNotFoundError:
        raise UserError(f"no prompts file {file}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"the prompts file {file} cannot be read ({why}): give a text file of JSON lines") from None


def _request(record: bytes, line: int, number: int, folder: Path) -> Request:
    if len(record) > _LONGEST_LINE:
        raise UserError(f"longer than {_LONGEST_LINE >> 20} MiB: no prompt that a model could read")
    try:
        value = json.loads(record.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start + 1} of the line): save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg} at column {error.colno}): write one object a line") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON that can be read ({error}): write one object a line") from None
    if not isinstance(value, dict):
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
        if name in value:
            fields[name] = _READERS[name](value[name], folder)
            if fields[name] is None:
                raise UserError(f"{name} is {value[name]!r:.60}: give {_MEANINGS[name]}")
        elif name in needed:
            raise UserError(f"the task {task} needs {name}, {_MEANINGS[name]}")
    return Request(line, number, task, **fields)


# Each gives None for a value of another form.


def _text(value: Any, _: Path) -> str | None:
    return value if isinstance(value, str) and not has_half_characters(value) else None


def _image(value: Any, folder: Path) -> Path | None:
    if not isinstance(value, str) or not value or has_half_characters(value) or "\0" in value:
        return None
    return folder / value


def _region(value: Any, _: Path) -> Region | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(share, int | float) and 0 <= share <= 1 for share in value):
        return None
    left, top, right, bottom = map(float, value)
    return left, top, right, bottom


def _order(value: Any, _: Path) -> str | None:
    return value if value in ("infill", "left_to_right") else None


def _segments(value: Any, folder: Path) -> tuple[str | Path, ...] | None:
    if not isinstance(value, list):
        return None
    segments = [
        _image(segment["image"], folder)
        if isinstance(segment, dict) and segment.keys() == {"image"}
        else _text(segment, folder)
        for segment in value
    ]
    found = tuple(segment for segment in segments if segment is not None)
    return found if len(found) == len(segments) else None


def _retrieved(value: Any, folder: Path) -> tuple[tuple[str, Path], ...] | None:
    if not isinstance(value, list):
        return None
    documents = []
    for document in value:
        if not isinstance(document, dict) or document.keys() != {"prompt", "image"}:
            return None
        text, image = _text(document["prompt"], folder), _image(document["image"], folder)
        if text is None or image is None:
            return None
        documents.append((text, image))
    return tuple(documents)


_READERS: dict[str, Callable[[Any, Path], Any]] = {
    "prompt": _text,
    "image": _image,
    "region": _region,
    "order": _order,
    "segments": _segments,
    "retrieved": _retrieved,
}


def has_half_characters(text: str) -> bool:
    """JSON can spell halves of surrogate pairs, which no tokenizer takes and no file can hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def read_images(paths: Iterable[Path], image_tokenizer: ImageTokenizer) -> dict[Path, Int[np.ndarray, "codes"] | str]:
    """The codes of each image, or, where it cannot be read, why; an image that is named twice is read once."""
    config = image_tokenizer.config
    distinct = list(dict.fromkeys(paths))
    found: dict[Path, Int[np.ndarray, "codes"] | str] = {}
    for start in range(0, len(distinct), _IMAGES):
        pixels = {}
        for path in distinct[start : start + _IMAGES]:
            try:
                if path.exists() and not path.is_file():
                    raise ValueError("no ordinary file")
                pixels[path] = decode_image(path.read_bytes(), config.resolution, config.in_channels)
            except FileNotFoundError:
                found[path] = f"no image {path}"
            except (OSError, ValueError, UnreadableImage) as error:
                found[path] = f"the image {path} cannot be read ({error}): give a PNG, a JPEG or the like"
        if pixels:
            codes = image_tokenizer.encode(np.stack(list(pixels.values())), min(_IMAGES, len(distinct)))
            found |= dict(zip(pixels, codes, strict=True))
    return found


def region_mask(region: Region, grid: int) -> Bool[np.ndarray, "codes"]:
    """The codes of an image that a region (left, top, right, bottom, in shares of the sides) covers."""
    left, top, right, bottom = (round(share * grid) for share in region)
    mask = np.zeros((grid, grid), bool)
    mask[top:bottom, left:right] = True
    return mask.ravel()


def prompt_of(
    request: Request,
    images: Mapping[Path, Int[np.ndarray, "codes"] | str],
    image_tokenizer: ImageTokenizerConfig,
    vocabulary: Vocabulary,
    max_text_tokens: int,
    sequence_length: int,
    neighbors: prompts.Retrieved = (),
) -> prompts.Prompt:
    """What the model is given to continue.

    Args:
      request: what is asked.
      images: as `read_images` gives them.
      image_tokenizer: the image tokenizer's sizes.
      vocabulary: names the ids.
      max_text_tokens: the most that a text of the answer may have.
      sequence_length: positions of the model, which end a continuation.
      neighbors: ids of documents that stand in front, behind those that the request names.

    Raises:
      UserError: if an image cannot be read, or the request makes no sense.
    """
    v, most, image_length = vocabulary, max_text_tokens, image_tokenizer.image_length
    codes = {path: _codes(images[path]) for path in request.images}
    named = [
        [*v.encode_text(text), v.break_, *v.encode_image(codes[image]).tolist()] for text, image in request.retrieved
    ]
    retrieved = [*named, *neighbors]
    text = request.prompt
    if request.task == "text_to_image":
        return prompts.text_to_image(text, image_length, v, retrieved)
    if request.task == "continue":
        segments = [segment if isinstance(segment, str) else codes[segment] for segment in request.segments]
        # Room for one image and one text, each behind a break, or what the positions leave of it.
        most += image_length + 2
        prompt = prompts.continuation(segments, most, image_length, v, retrieved)
        room = max(1, sequence_length - len(prompt.variants[0].tokens))
        return dataclasses.replace(
            prompt, plan=prompt.plan[:room], plan_image_positions=prompt.plan_image_positions[:room]
        )
    assert request.image is not None
    image = codes[request.image]
    if request.task == "infill":
        masked = region_mask(request.region, image_tokenizer.grid)
        return prompts.infill(text, image, masked, v, retrieved)
    if request.task == "edit":
        return prompts.edit(text, image, v, retrieved)
    if request.task == "infill_text":
        # A space belongs to the word that follows it, so in training it is masked with that word.
        return prompts.text_infill(text.replace(f" {prompts.BLANK}", prompts.BLANK), image, most, v, retrieved)
    if prompts.BLANK in text:
        raise UserError(f"the prompt of the task {request.task} holds {prompts.BLANK}: the task infill_text fills it")
    if request.task == "vqa":
        beginning = layouts.QUESTION.text_before("answer", question=text.strip())
    else:
        beginning = layouts.INSTRUCTED_CAPTION.text_before("caption", instruction=text)
    if request.order == "left_to_right":
        return prompts.text_after_image(image, most, v, beginning, retrieved)
    return prompts.text_infill(beginning + prompts.BLANK, image, most, v, retrieved)


def _codes(image: Int[np.ndarray, "codes"] | str) -> Int[np.ndarray, "codes"]:
    if isinstance(image, str):
        raise UserError(image)
    return image
