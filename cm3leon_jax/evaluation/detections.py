"""Objects found in images: by a detector that a module registers, or read from a file that any detector wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from typing_extensions import TypedDict

from cm3leon_jax.errors import UserError
from cm3leon_jax.records import check_shape

# Left, top, right and bottom, in pixels.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object in an image; its color is empty where nobody looked."""

    name: str
    box: Box
    score: float
    color: str = ""


@runtime_checkable
class Detector(Protocol):
    """Finds objects; a frozen dataclass whose fields are its options."""

    def __call__(self, images: UInt8[np.ndarray, "n R R C"]) -> Sequence[Sequence[Detection]]:
        """Returns the objects in each image, in any order and of any score."""
        ...


_FoundObject = TypedDict("_FoundObject", {"class": str, "box": Box, "score": float, "color": NotRequired[str]})


class DetectionsLine(TypedDict):
    """A line of a file of detections: the image is that sample, from 0, of the prompt with that id."""

    id: str
    sample: NotRequired[int]
    detections: list[_FoundObject]


def read_detections(path: str | Path) -> dict[tuple[str, int], list[Detection]]:
    """Reads a file of detections: JSON lines, one per image.

    Returns:
      The detections of each image, by its prompt's id and its place among the images of that prompt.

    Raises:
      UserError: names the line that is damaged, or is there twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"the detections {path} cannot be read ({error}): give a file of JSON lines") from None
    found: dict[tuple[str, int], list[Detection]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the detections are damaged: {where} is not JSON ({error})") from None
        fix = 'give {"id", "sample", "detections": [{"class", "box": [left, top, right, bottom], "score"}]}'
        record = check_shape(value, DetectionsLine, "a line of detections", where, fix)
        image = (record["id"], record.get("sample", 0))
        if image in found:
            raise UserError(f"the detections are damaged: {where} is the second of sample {image[1]} of {image[0]}")
        found[image] = [
            Detection(each["class"], tuple(each["box"]), each["score"], each.get("color", ""))
            for each in record["detections"]
        ]
    return found


def of_images(
    found: Mapping[tuple[str, int], list[Detection]], ids: Sequence[str], samples: Sequence[int], path: str | Path
) -> list[list[Detection]]:
    """The detections of each image.

    Raises:
      UserError: names an image that the file says nothing of.
    """
    images = [(name, int(sample)) for name, sample in zip(ids, samples, strict=True)]
    for name, sample in images:
        if (name, sample) not in found:
            raise UserError(
                f"the detections {path} have no line of sample {sample} of the prompt {name}: "
                "run the detector on all images, and write a line for those without an object, too"
            )
    return [found[image] for image in images]
