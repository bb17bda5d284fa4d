"""Whether an image shows the objects that its prompt asks for, by GenEval's rules (arXiv 2310.11513, section 3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from cm3leon_jax.evaluation.detections import Box, Detection

# What is at most so sure is no object; of those to be counted a detector has to be surer.
MIN_SCORE, MIN_SCORE_COUNTING = 0.3, 0.9
# Most objects of a class in an image.
MAX_OBJECTS = 16
# How much two objects may overlap, as a fraction of their sizes, and still be beside each other.
MARGIN = 0.1
COUNTING = "counting"
RELATIONS = ("left of", "right of", "above", "below")
# An object is beside another if the direction to it is within 60 degrees of that side.
_MIN_DIRECTION = 0.5
# In pixels.
_NO_DISTANCE = 1e-3
# Objects in their asked box.
GOOD_IOU = 0.5

# `position` is a relation, and the index in `include` of what it relates to; `box` is left, top, right and bottom as
# fractions of the image, for grounded prompts, which GenEval has none of.
AskedObject = TypedDict(
    "AskedObject",
    {
        "class": str,
        "count": int,
        "color": NotRequired[str],
        "position": NotRequired[tuple[str, int]],
        "box": NotRequired[Box],
    },
)
_ExcludedObject = TypedDict("_ExcludedObject", {"class": str, "count": int})


class AskedObjects(TypedDict):
    """What a prompt asks for, in GenEval's published form; `tag` is its task."""

    tag: str
    include: list[AskedObject]
    exclude: NotRequired[list[_ExcludedObject]]


# The colors of an image's objects.
Colors = Callable[[Sequence[Detection]], Sequence[str]]


def asked_boxes(boxes: Sequence[Mapping[str, Any]], side: int) -> dict[str, Any]:
    """What a request for {"name", "box"}, in pixels, asks for: as many objects of each name, each in its box."""
    counts = Counter(each["name"] for each in boxes)
    # All of a name with its first, since each entry is counted on its own.
    include = [
        {"class": each["name"], "count": counts.pop(each["name"], 1), "box": [bound / side for bound in each["box"]]}
        for each in boxes
    ]
    return {"tag": "boxes", "include": include}


def fault_of(asked: AskedObjects) -> str:
    """What is wrong with a prompt's objects beyond their form; empty if nothing is."""
    for index, each in enumerate(asked["include"]):
        if each["count"] < 1:
            return f"include.{index}.count is {each['count']}: ask for at least one"
        if "position" in each and (each["position"][0] not in RELATIONS or not 0 <= each["position"][1] < index):
            return f"include.{index}.position is {list(each['position'])}: one of {RELATIONS}, and an earlier object"
        if "box" in each and not (
            0 <= each["box"][0] < each["box"][2] <= 1 and 0 <= each["box"][1] < each["box"][3] <= 1
        ):
            return f"include.{index}.box is {list(each['box'])}: left, top, right, bottom as fractions of the image"
    return ""


def by_class(detections: Sequence[Detection], is_counting: bool) -> dict[str, list[Detection]]:
    """The objects of each class that count, the surest first."""
    found: dict[str, list[Detection]] = {}
    for each in sorted(detections, key=lambda detection: -detection.score):
        of_class = found.setdefault(each.name, [])
        if each.score > (MIN_SCORE_COUNTING if is_counting else MIN_SCORE) and len(of_class) < MAX_OBJECTS:
            of_class.append(each)
    return found


def shows(asked: AskedObjects, detections: Sequence[Detection], colors: Colors) -> bool:
    """Whether an image has all that is asked for, and nothing that is excluded.

    Of each class the surest objects, as many as asked for, have to have the color and the position.
    """
    found = by_class(detections, asked["tag"] == COUNTING)
    chosen: list[list[Detection]] = []
    for each in asked["include"]:
        objects = found.get(each["class"], [])[: each["count"]]
        if len(objects) < each["count"]:
            return False
        if "color" in each and any(color != each["color"] for color in colors(objects)):
            return False
        if "position" in each:
            relation, other = each["position"]
            if not all(relation in relations(one.box, two.box) for one in objects for two in chosen[other]):
                return False
        chosen.append(objects)
    return all(len(found.get(each["class"], [])) < each["count"] for each in asked.get("exclude", []))


def relations(first: Box, second: Box) -> set[str]:
    """On which sides of the second box the first is; of none where they are too close."""
    one, two = np.reshape(first, (2, 2)), np.reshape(second, (2, 2))
    offset = one.mean(axis=0) - two.mean(axis=0)
    slack = MARGIN * (np.abs(one[1] - one[0]) + np.abs(two[1] - two[0]))
    beyond = np.sign(offset) * np.maximum(np.abs(offset) - slack, 0)
    if np.all(np.abs(beyond) < _NO_DISTANCE):
        return set()
    right, down = beyond / np.linalg.norm(offset)
    sides = dict(zip(RELATIONS, (-right, right, -down, down), strict=True))
    return {relation for relation, along in sides.items() if along > _MIN_DIRECTION}


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    one, two = np.reshape(first, (2, 2)), np.reshape(second, (2, 2))
    inside = np.prod(np.maximum(np.minimum(one[1], two[1]) - np.maximum(one[0], two[0]), 0))
    union = np.prod(one[1] - one[0]) + np.prod(two[1] - two[0]) - inside
    return float(inside / union) if union > 0 else 0.0


def box_ious(asked: AskedObjects, detections: Sequence[Detection], side: int) -> list[float]:
    """Of each object with a box: the IoU of the best object of its class, 0 if there is none; `side` is the image's."""
    found = by_class(detections, asked["tag"] == COUNTING)
    ious = []
    for each in asked["include"]:
        if "box" in each:
            left, top, right, bottom = (side * bound for bound in each["box"])
            ious.append(
                max((iou((left, top, right, bottom), one.box) for one in found.get(each["class"], [])), default=0.0)
            )
    return ious
