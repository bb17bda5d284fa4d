"""Registers the metric "scenes": what a model does with held-out instructions, by the judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.registry import METRICS
from cm3leon_jax.evaluation.sets.base import Item
from cm3leon_jax.images import encode_png
from cm3leon_jax.ranges import PositiveInt
from examples.scenes import judge, structure, texts
from examples.scenes.edits import EDITS, sample_edit
from examples.scenes.pictures import Scene, SceneConfig, check_split, render, sample
from examples.scenes.questions import QUESTIONS, sample_question

METRICS.add("scenes", "examples.scenes.metric:Scenes")

Values = dict[str, float | Estimate]

# Of requests, which no training scene has.
_SEED = 1_000_003


@dataclass(frozen=True)
class Scenes:
    """How many of `num` held-out requests a task are right: objects at their positions, edits, questions, captions."""

    headlines: ClassVar[dict[str, str]] = {
        "objects_objects_at_position": "of objects are where a list of boxes asks for them",
        "objects_scenes_whole": "of scenes from a list of boxes are right as a whole",
        "edits_sky_whole": "of edits of the sky change it and nothing else",
        "questions_question_accuracy": "of questions are answered right",
        "captions_captions_with_kinds": "of long captions name exactly the objects",
    }

    num: PositiveInt = 500
    split: str = "validation"
    # In which instructions, questions and captions are said; of the same words as the others.
    held_out_wordings: bool = True
    tasks: tuple[str, ...] = ("objects", "short", "long", "edges", "segmentation", "edits", "questions", "captions")

    def __post_init__(self) -> None:
        check_split(self.split)
        if unknown := [task for task in self.tasks if task not in _TASKS]:
            raise UserError(f"the metric scenes has no task {unknown[0]!r}: one of {', '.join(_TASKS)}")

    def __call__(self, evaluation: EvaluationContext) -> Values:
        shape = evaluation.model.image_tokenizer.config
        if (shape.resolution, shape.in_channels) != (32, 3):
            raise UserError(
                f"the metric scenes takes color images of 32 pixels, and those of this run are {shape.resolution} with "
                f"{shape.in_channels} channels: remove the metric"
            )
        values: Values = {}
        for task in self.tasks:
            found = _TASKS[task](self, SceneConfig(), evaluation)
            values |= {f"{task}_{name}": value for name, value in found.items()}
        return values

    def scenes(self, config: SceneConfig) -> list[Scene]:
        return [sample(config, self.split, _SEED, index) for index in range(self.num)]


def _from_texts(form: str) -> Callable[[Scenes, SceneConfig, EvaluationContext], Values]:
    """Images from captions of a form, or with "objects" from lists of boxes, which a short caption goes with."""

    def measure(metric: Scenes, config: SceneConfig, evaluation: EvaluationContext) -> Values:
        scenes = metric.scenes(config)
        items = []
        for index, scene in enumerate(scenes):
            caption = texts.caption(scene, "short" if form == "objects" else form, index, metric.held_out_wordings)
            boxes = [{"name": each.kind, "box": list(each.box)} for each in texts.ordered(scene, "raster")]
            request = {"prompt": caption} | ({"objects": boxes} if form == "objects" else {})
            items.append(Item(str(index), request))
        return _score(config, scenes, _images(evaluation, form, items), is_ground_asked=form == "long")

    return measure


def _from_maps(kind: str) -> Callable[[Scenes, SceneConfig, EvaluationContext], Values]:
    """Images from structure maps."""

    def measure(metric: Scenes, config: SceneConfig, evaluation: EvaluationContext) -> Values:
        scenes = metric.scenes(config)
        items = []
        for index, scene in enumerate(scenes):
            pixels = structure.edges(render(scene)) if kind == "edges" else structure.segmentation(scene)
            fields = {
                "structure": {"image": encode_png(pixels)},
                "caption": texts.caption(scene, "short", index, metric.held_out_wordings),
            }
            items.append(Item(str(index), {"task": "instruction", "template": kind, "fields": fields}))
        return _score(config, scenes, _images(evaluation, kind, items), is_ground_asked=False)

    return measure


def _score(config: SceneConfig, scenes: Sequence[Scene], images: np.ndarray, is_ground_asked: bool) -> Values:
    """The judge's scores; where no text names the ground, any is right."""
    found = judge.read(config, images)
    if is_ground_asked:
        return dict(judge.score_images(scenes, found))
    found = [dataclasses.replace(each, ground=scene.ground) for each, scene in zip(found, scenes, strict=True)]
    values = judge.score_images(scenes, found)
    return {name: value for name, value in values.items() if name != "scenes_with_ground"}


def _edits(metric: Scenes, config: SceneConfig, evaluation: EvaluationContext) -> Values:
    """As many edits of each type."""
    edits = [
        sample_edit(config, metric.split, _SEED, len(EDITS) * index + number, type)
        for index in range(metric.num)
        for number, type in enumerate(EDITS)
    ]
    items = []
    for index, edit in enumerate(edits):
        instruction = edit.instruction(index, metric.held_out_wordings)
        request = {"task": "edit", "prompt": instruction, "image": encode_png(render(edit.before))}
        items.append(Item(str(index), request, image=encode_png(render(edit.after))))
    return dict(judge.score_edits(edits, judge.read(config, _images(evaluation, "edits", items))))


def _questions(metric: Scenes, config: SceneConfig, evaluation: EvaluationContext) -> Values:
    """A question of a type for each scene, in turn, where the scene has one."""
    scenes, types = metric.scenes(config), list(QUESTIONS)
    questions, items = [], []
    for index, scene in enumerate(scenes):
        wanted = types[index % len(types)]
        try:
            question = sample_question(config, scene, _SEED, index, metric.held_out_wordings, wanted)
        except UserError:
            question = sample_question(config, scene, _SEED, index, metric.held_out_wordings)
        fields = {"image": {"image": encode_png(render(scene))}, "question": [question.text]}
        questions.append(question)
        request = {"task": "instruction", "template": "questions", "fields": fields}
        items.append(Item(str(index), request, references=(question.answer,)))
    return judge.score_answers(questions, _texts(evaluation, "questions", items))


def _captions(metric: Scenes, config: SceneConfig, evaluation: EvaluationContext) -> Values:
    """Long captions, by infill."""
    scenes = metric.scenes(config)
    items = []
    for index, scene in enumerate(scenes):
        fields = {"image": {"image": encode_png(render(scene))}}
        request = {"task": "instruction", "template": "long_caption", "fields": fields}
        true = texts.caption(scene, "long", index, metric.held_out_wordings)
        items.append(Item(str(index), request, references=(true,)))
    return dict(judge.score_captions(scenes, _texts(evaluation, "captions", items)))


_TASKS: dict[str, Callable[[Scenes, SceneConfig, EvaluationContext], Values]] = {
    "objects": _from_texts("objects"),
    "short": _from_texts("short"),
    "long": _from_texts("long"),
    "edges": _from_maps("edges"),
    "segmentation": _from_maps("segmentation"),
    "edits": _edits,
    "questions": _questions,
    "captions": _captions,
}


def _images(evaluation: EvaluationContext, task: str, items: Sequence[Item]) -> np.ndarray:
    codes = [result.candidates[0].image for result in evaluation.complete(f"scenes: {task}", items)]
    return evaluation.model.image_tokenizer.decode(np.stack([code for code in codes if code is not None]))


def _texts(evaluation: EvaluationContext, task: str, items: Sequence[Item]) -> list[str]:
    return [result.candidates[0].text or "" for result in evaluation.complete(f"scenes: {task}", items)]
