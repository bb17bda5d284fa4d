"""How many images show the objects, counts, colors and positions of their prompts: GenEval, and asked boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from cm3leon_jax.config_values import build
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.batches import item_values
from cm3leon_jax.evaluation.color_judge import ColorJudge
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.detections import Detection, Detector, of_images, read_detections
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.image_arrays import ImageArray
from cm3leon_jax.evaluation.judge_files import OptionalJudgePath
from cm3leon_jax.evaluation.object_scores import GOOD_IOU, AskedObjects, asked_boxes, box_ious, fault_of, shows
from cm3leon_jax.evaluation.registry import COLOR_JUDGES, DETECTORS
from cm3leon_jax.evaluation.set_results import SampledImages
from cm3leon_jax.evaluation.sets.base import Item
from cm3leon_jax.ranges import PositiveInt
from cm3leon_jax.records import check_shape
from cm3leon_jax.registry import Registry

# The detections of each of some images, by their indices.
Finder = Callable[[slice], Sequence[Sequence[Detection]]]


@dataclass(frozen=True)
class Objects:
    """The fraction of images that are right, by task; the mean of the tasks; IoU with asked boxes where there are any.

    Objects come from a registered detector or from a file, of which one has to be given.
    """

    tasks: ClassVar[tuple[str, ...]] = ("text_to_image",)

    # The evaluation set with structured prompts.
    set: str
    # A name in the registry of detectors, and its options; or a file of JSON lines (`detections.DetectionsLine`).
    detector: str = ""
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    detections: OptionalJudgePath = ""
    # A name in the registry of color judges, and its options; empty: the colors of the detections.
    colors: str = ""
    color_options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: PositiveInt = 16

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        if bool(self.detector) == bool(self.detections):
            raise UserError("an objects metric needs a detector or a file of detections: give one of the two options")
        samples = evaluation.sampled(self.set)
        side = evaluation.config.image_tokenizer.resolution
        asked = {item.id: _asked(item, side) for item in samples.items}
        if not asked:
            raise UserError(f"an objects metric: {self.set!r} is no evaluation set with structured prompts")
        find = self._finder(samples)
        found = self._scores(samples, asked, find, side)
        is_right = [image_is_right for image_is_right, _ in found]
        ious = [(name, value) for name, (_, of_image) in zip(samples.ids, found, strict=True) for value in of_image]
        values: dict[str, float | Estimate] = {}
        values |= by_task([asked[name]["tag"] for name in samples.ids], is_right, samples.ids)
        if ious:
            groups, overlaps = [name for name, _ in ious], np.array([value for _, value in ious])
            values["objects_iou"] = estimates.mean(overlaps, groups)
            values["objects_in_box"] = estimates.mean((overlaps >= GOOD_IOU).astype(np.float64), groups)
        return values

    @cached_property
    def judges(self) -> dict[str, Any]:
        """The registered detector and color judge, by the option that names each."""
        found: dict[str, Any] = {}
        if self.detector:
            found["detector"] = _built(DETECTORS, self.detector, self.detector_options, "detector_options")
        if self.colors:
            found["colors"] = _built(COLOR_JUDGES, self.colors, self.color_options, "color_options")
        return found

    def _scores(
        self, samples: SampledImages, asked: Mapping[str, AskedObjects], find: Finder, side: int
    ) -> list[tuple[bool, list[float]]]:
        """Of each image whether it is right, and its IoU with asked boxes; the processes of a run share the images."""
        judge: ColorJudge | None = self.judges.get("colors")

        def scores(batch: slice) -> list[tuple[bool, list[float]]]:
            found = []
            for number, detections in zip(range(batch.start, batch.stop), find(batch), strict=True):
                of_prompt, of_image = asked[samples.ids[number]], _Colors(judge, samples.images, number)
                found.append((shows(of_prompt, detections, of_image), box_ious(of_prompt, detections, side)))
            return found

        return item_values(scores, len(samples.ids), self.batch_size, f"objects in {len(samples.ids):,} images")

    def _finder(self, samples: SampledImages) -> Finder:
        if file := self.detections:
            found = of_images(read_detections(file), samples.ids, samples.ranks.tolist(), file)
            return lambda batch: found[batch]
        detector: Detector = self.judges["detector"]
        return lambda batch: detector(samples.images[batch])


@dataclass(frozen=True)
class _Colors:
    """The colors of the objects in one image, by a judge or as the detections have them."""

    judge: ColorJudge | None
    images: ImageArray
    index: int

    def __call__(self, objects: Sequence[Detection]) -> Sequence[str]:
        if self.judge is not None:
            return self.judge(self.images[self.index : self.index + 1][0], objects)
        if any(not each.color for each in objects):
            raise UserError("an objects metric: a detection has no color that a prompt asks for: set colors to a judge")
        return [each.color for each in objects]


def _built(registry: Registry, name: str, options: Mapping[str, Any], where: str) -> Any:
    return build(registry.load(name), options, f"the {where} of an objects metric")


def _asked(item: Item, side: int) -> AskedObjects:
    """What an item asks for: its objects, or else those that its request has boxes for, in pixels."""
    fix = 'give {"tag", "include": [{"class", "count", "color", "position"}]}'
    boxes = item.request.get("objects", ())
    objects = dict(item.objects) if item.objects or not boxes else asked_boxes(boxes, side)
    asked: AskedObjects = check_shape(objects, AskedObjects, "the record of a prompt's objects", f"item {item.id}", fix)
    if fault := fault_of(asked):
        raise UserError(f"the objects of the prompt {item.id}: {fault}")
    return asked


def by_task(tasks: Sequence[str], is_right: Sequence[bool], prompts: Sequence[str]) -> dict[str, Estimate]:
    """The fraction of right images of each task, and the mean of these fractions, which all weigh the same.

    Args:
      tasks: of each image.
      is_right: of each image.
      prompts: the prompt of each image, all of whose images are resampled together.
    """
    names = sorted(dict.fromkeys(tasks))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(prompts))}
    right, total = np.zeros((2, len(numbers), len(names)))
    for task, image_is_right, prompt in zip(tasks, is_right, prompts, strict=True):
        right[numbers[prompt], names.index(task)] += image_is_right
        total[numbers[prompt], names.index(task)] += 1

    def mean_of_tasks(chosen_prompts: Int[np.ndarray, "p"]) -> float:
        sums, counts = right[chosen_prompts].sum(axis=0), total[chosen_prompts].sum(axis=0)
        # A small sample may lack a task.
        return float(np.mean(sums[counts > 0] / counts[counts > 0]))

    values = {}
    for task in names:
        chosen = [index for index, each in enumerate(tasks) if each == task]
        scores = [float(is_right[index]) for index in chosen]
        values[f"objects_{task}"] = estimates.mean(scores, [prompts[index] for index in chosen])
    overall = estimates.bootstrap(mean_of_tasks, len(numbers))
    values["objects_mean"] = dataclasses.replace(overall, n=len(tasks))
    return values
