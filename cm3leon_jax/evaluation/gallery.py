"""A few of the images and texts that a model generated for an evaluation, on pages and in a folder.

WORKDIR/samples/evaluation/samples.jsonl    {"set", "id", "prompt", "images": [FILE], "text", "references"} per request
WORKDIR/samples/evaluation/00000_0.png      the images that it names
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.image_arrays import ImageFiles
from cm3leon_jax.files import atomic_write, remove_folder
from cm3leon_jax.generation.generate import Result
from cm3leon_jax.generation.outputs import write_lines
from cm3leon_jax.generation.requests import ImageSource, Request
from cm3leon_jax.images import encode_png

# Most requests of a set, and images of each.
_MOST_SHOWN, _MOST_IMAGES = 24, 4
_LIST = "samples.jsonl"
# In the folder of the run.
GALLERY = "samples/evaluation"


@dataclass(frozen=True)
class GalleryEntry:
    """A request, and what the model generated for it."""

    # Name of the evaluation set, or of a metric's own items; empty: the prompts of the config.
    set: str
    id: str
    prompt: str
    # The image that was asked about, or that was edited.
    source: UInt8[np.ndarray, "R R C"] | None
    images: list[UInt8[np.ndarray, "R R C"]]
    text: str
    references: tuple[str, ...]
    # What an edited image should be.
    target: UInt8[np.ndarray, "R R C"] | None = None


class _Line(TypedDict):
    set: str
    id: str
    prompt: str
    images: list[str]
    text: NotRequired[str]
    references: NotRequired[list[str]]


def gallery(evaluation: EvaluationContext) -> list[GalleryEntry]:
    """The first requests of the config's prompts and of each evaluation set that was generated for."""
    entries = []
    per_prompt = evaluation.config.evaluate.samples_per_prompt
    for number, prompt in enumerate(evaluation.prompts[:_MOST_SHOWN]):
        first = number * per_prompt
        images = evaluation.sampled_images[first : first + min(per_prompt, _MOST_IMAGES)]
        entries.append(GalleryEntry("", prompt, prompt, None, list(images), "", ()))
    for name, completed in evaluation.completed.items():
        for item, result in zip(completed.items[:_MOST_SHOWN], completed.results, strict=False):
            generated, text = _generated(result, evaluation)
            request = result.request
            source = _decoded(next(iter(request.given_images), None), evaluation)
            target = _decoded(item.image, evaluation) if request.task == "edit" else None
            entries.append(
                GalleryEntry(name, item.id, _asked(request), source, generated, text, item.references, target)
            )
    return entries


def _asked(request: Request) -> str:
    """What a request asks in words: its prompt and the names of its objects, or the texts of its template's fields."""
    of_fields = [value for value in request.field_values if isinstance(value, str)]
    texts = [request.prompt, *of_fields, *(f"{name} at {box}" for name, box in request.objects)]
    return ", ".join(text for text in texts if text)


def _generated(result: Result, evaluation: EvaluationContext) -> tuple[list[np.ndarray], str]:
    codes = [candidate.image for candidate in result.candidates[:_MOST_IMAGES] if candidate.image is not None]
    images = list(evaluation.model.image_tokenizer.decode(np.stack(codes))) if codes else []
    return images, result.candidates[0].text or ""


def _decoded(image: ImageSource | None, evaluation: EvaluationContext) -> UInt8[np.ndarray, "R R C"] | None:
    if image is None:
        return None
    config = evaluation.config.image_tokenizer
    return ImageFiles([image], config.resolution, config.in_channels, evaluation.model.squaring)[:1][0]


def write_gallery(entries: Sequence[GalleryEntry], folder: Path) -> None:
    """Puts the images and their list in the place of those of an earlier evaluation."""
    remove_folder(folder)
    folder.mkdir(parents=True)
    lines = []
    for number, entry in enumerate(entries):
        names = [f"{number:05d}_{index}.png" for index in range(len(entry.images))]
        for name, image in zip(names, entry.images, strict=True):
            with atomic_write(folder / name) as temporary:
                temporary.write_bytes(encode_png(image))
        lines.append(
            {
                "set": entry.set,
                "id": entry.id,
                "prompt": entry.prompt,
                "images": names,
                "text": entry.text,
                "references": entry.references,
            }
        )
    write_lines(folder / _LIST, lines)


def read_gallery(folder: Path) -> Iterator[tuple[_Line, list[bytes]]]:
    """The lines of a gallery, each with the bytes of its images; nothing where there is none, or it is damaged."""
    try:
        for line in (folder / _LIST).read_text(encoding="utf-8").splitlines():
            entry: _Line = json.loads(line)
            yield entry, [(folder / Path(name).name).read_bytes() for name in entry["images"]]
    except (OSError, ValueError, KeyError, TypeError):
        return
