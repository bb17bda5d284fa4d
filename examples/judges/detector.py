"""The judge CenterNet, a detector of the 80 classes of COCO, on a MobileNetV3 (arXiv 1904.07850, 1905.02244)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from cm3leon_jax.config_part import require
from cm3leon_jax.evaluation.detections import Detection
from cm3leon_jax.evaluation.judge_files import JudgePath
from cm3leon_jax.evaluation.object_scores import MIN_SCORE, MIN_SCORE_COUNTING, iou
from examples.judges.graph_model import load_graph_model

_SIDE = 512
_INPUT, _OUTPUT = "tower_0/images", "tower_0/detections"
# Two boxes of a class that overlap more are one object, that of the higher score.
_SAME_OBJECT_IOU = 0.5
# Below, the network's 100 candidates are noise.
_NOISE = 0.05

COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
# What the prompts of GenEval call classes of COCO.
GENEVAL_NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}


@dataclass(frozen=True)
class CocoDetector:
    """Objects of COCO's classes in images that are resized to 512 pixels."""

    # The folder of centernet.json and centernet.bin.
    model: JudgePath
    # From which score of the network on a detection is an object, and one that is counted: GenEval's thresholds are for
    # a detector that is surer, so scores are mapped so that the thresholds are here (examples/judges/README.md).
    object_score: float = 0.3
    counting_score: float = 0.3
    # Whether classes are called as in GenEval's prompts: "computer mouse" where COCO says "mouse".
    geneval_names: bool = True

    def __post_init__(self) -> None:
        require(
            0 < self.object_score <= self.counting_score < 1,
            f"the detector coco has object_score {self.object_score}, counting_score {self.counting_score}: give two "
            "numbers between 0 and 1, the second not the smaller",
        )

    @cached_property
    def _network(self) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        return load_graph_model(Path(self.model) / "centernet.json", [_INPUT], [_OUTPUT])

    def __call__(self, images: UInt8[np.ndarray, "n R R C"]) -> list[list[Detection]]:
        return [self._of_image(image) for image in images]

    def _of_image(self, image: UInt8[np.ndarray, "R R C"]) -> list[Detection]:
        rows = self._network({_INPUT: prepare(image)})[_OUTPUT][0]
        names = [GENEVAL_NAMES.get(name, name) for name in COCO_CLASSES] if self.geneval_names else COCO_CLASSES
        found = decode(rows, image.shape[0], names)
        return [replace(each, score=self._mapped(each.score)) for each in found]

    def _mapped(self, score: float) -> float:
        known = (0.0, self.object_score, self.counting_score, 1.0)
        return float(np.interp(score, known, (0.0, MIN_SCORE, MIN_SCORE_COUNTING, 1.0)))


def prepare(image: UInt8[np.ndarray, "R R C"]) -> Float32[np.ndarray, "1 512 512 3"]:
    """The network's input: levels of 0 to 255; one gray channel becomes three."""
    pixels = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    resized = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float32)[None]


def decode(rows: Float32[np.ndarray, "n 6"], side: int, names: Sequence[str]) -> list[Detection]:
    """Objects of the network's candidates, the surest first, without second boxes of an object.

    Args:
      rows: left, top, right, bottom in pixels of the network's input, score, and the number of the class.
      side: of the image, in pixels.
      names: of the classes.
    """
    found: list[Detection] = []
    for left, top, right, bottom, score, number in rows[np.argsort(-rows[:, 4], kind="stable")].tolist():
        if not score >= _NOISE:
            break
        bounds = np.clip([left, top, right, bottom], 0, _SIDE) * (side / _SIDE)
        each = Detection(names[int(number)], tuple(bounds.tolist()), score)
        if all(other.name != each.name or iou(other.box, each.box) <= _SAME_OBJECT_IOU for other in found):
            found.append(each)
    return found
