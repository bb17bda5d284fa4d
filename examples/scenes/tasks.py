"""Registers seqio tasks of scenes: captioned images to pretrain on, and instructions to tune on.

The mixture "scenes" has captions alone; "scenes_instructions" has images from captions and from lists of objects,
edits, questions, captions and structure maps. Scenes of each task are its own; those of validation are of held-out
combinations, in held-out wordings. In training "scenes_instructions_one_wording" says each thing in one way alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import seqio
import tensorflow as tf

from cm3leon_jax.data.sources import DOCUMENT, OUTPUT_FEATURES, TracedSource
from cm3leon_jax.images import encode_png
from examples.scenes import structure, texts
from examples.scenes.edits import sample_edit
from examples.scenes.pictures import Scene, SceneConfig, render, sample
from examples.scenes.questions import sample_questions

CONFIG = SceneConfig()

# Text, or the bytes of an image.
Value = str | bytes

NUM_VALIDATION = 200

# About an image: with more the longest document would not fit a row of the config.
_MOST_QUESTIONS = 8


def captioned(
    form: str, template: str, split: str, seed: int, index: int, wording: int | None
) -> tuple[str, list[Value]]:
    scene, held_out = sample(CONFIG, split, seed, index), split != "train"
    return template, [texts.caption(scene, form, _number(index, wording), held_out), image(scene)]


def located(split: str, seed: int, index: int, wording: int | None) -> tuple[str, list[Value]]:
    scene = sample(CONFIG, split, seed, index)
    caption = texts.caption(scene, "short", _number(index, wording), split != "train")
    return "objects", [caption, texts.located(scene), image(scene)]


def edited(split: str, seed: int, index: int, wording: int | None) -> tuple[str, list[Value]]:
    edit = sample_edit(CONFIG, split, seed, index)
    return "edit", [image(edit.before), edit.instruction(_number(index, wording), split != "train"), image(edit.after)]


def asked(split: str, seed: int, index: int, wording: int | None) -> tuple[str, list[Value]]:
    scene = sample(CONFIG, split, seed, index)
    # Fewer in some, since a request asks one.
    number = _MOST_QUESTIONS if index % 2 else 1 + index // 2 % _MOST_QUESTIONS
    questions = sample_questions(CONFIG, scene, seed, index, number, split != "train", wording=wording)
    return "questions", [image(scene), *(part for each in questions for part in (each.text, each.answer))]


def mapped(kind: str, split: str, seed: int, index: int, wording: int | None) -> tuple[str, list[Value]]:
    scene = sample(CONFIG, split, seed, index)
    pixels = structure.edges(render(scene)) if kind == "edges" else structure.segmentation(scene)
    return kind, [
        encode_png(pixels),
        texts.caption(scene, "short", _number(index, wording), split != "train"),
        image(scene),
    ]


def _number(index: int, wording: int | None) -> int:
    """Which wording an example has: one after the other, if none is given for all."""
    return index if wording is None else wording


def image(scene: Scene) -> bytes:
    return encode_png(render(scene))


# What makes an example of a split, seed, index and wording; how many there are to train on; its rate in the mixture.
Maker = Callable[[str, int, int, int | None], tuple[str, list[Value]]]
PRETRAINING: dict[str, tuple[Maker, int, float]] = {
    "scenes_short": (partial(captioned, "short", ""), 30_000, 1.0),
    "scenes_long": (partial(captioned, "long", ""), 30_000, 1.0),
}
INSTRUCTIONS: dict[str, tuple[Maker, int, float]] = {
    "scenes_from_short_captions": (partial(captioned, "short", "text_to_image"), 10_000, 0.7),
    "scenes_from_long_captions": (partial(captioned, "long", "text_to_image"), 10_000, 0.7),
    "scenes_from_objects": (located, 40_000, 2.0),
    "scenes_edits": (edited, 50_000, 3.5),
    "scenes_questions": (asked, 50_000, 4.0),
    "scenes_captions": (partial(captioned, "long", "long_caption"), 20_000, 0.8),
    "scenes_from_edges": (partial(mapped, "edges"), 5_000, 0.15),
    "scenes_from_segmentation": (partial(mapped, "segmentation"), 5_000, 0.15),
}


def _source(maker: Maker, number: int, num_train: int, has_one_wording: bool) -> TracedSource:
    """The examples of a task, the same whenever they are made."""
    sizes = {"train": num_train, "validation": NUM_VALIDATION}

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        def examples() -> Iterator[dict[str, object]]:
            for index in range(sizes[split]):
                is_first = has_one_wording and split == "train"
                template, values = maker(split, number, index, 0 if is_first else None)
                is_image = [isinstance(value, bytes) for value in values]
                yield {"segments": values, "is_image": is_image, "template": template}

        return tf.data.Dataset.from_generator(examples, output_signature=DOCUMENT)

    wordings = ", one wording" if has_one_wording else ""
    provenance = {"scenes": f"{num_train} of seed {number}, {CONFIG}{wordings}"}
    return TracedSource(dataset, list(sizes), sizes, provenance=lambda: provenance)


def _add_mixture(
    name: str, tasks: dict[str, tuple[Maker, int, float]], first_seed: int, has_one_wording: bool = False
) -> None:
    rates = []
    for number, (task, (maker, num_train, rate)) in enumerate(tasks.items(), start=first_seed):
        task_name = f"{task}_one_wording" if has_one_wording else task
        source = _source(maker, number, num_train, has_one_wording)
        seqio.TaskRegistry.add(task_name, source=source, preprocessors=[], output_features=OUTPUT_FEATURES)
        rates.append((task_name, rate))
    seqio.MixtureRegistry.add(name, rates)


_add_mixture("scenes", PRETRAINING, 0)
_add_mixture("scenes_instructions", INSTRUCTIONS, len(PRETRAINING))
_add_mixture("scenes_instructions_one_wording", INSTRUCTIONS, len(PRETRAINING), has_one_wording=True)
