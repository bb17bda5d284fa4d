"""Registers the digits as a seqio mixture, half of the documents text first, half image first, and instructions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import seqio
import tensorflow as tf

from cm3leon_jax.data.sources import OUTPUT_FEATURES, add_task, instruction
from examples.digits import images as digits
from examples.digits.instructions import edit_of, edited, question_of


def _digits(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    def copies() -> Iterator[dict[str, np.ndarray]]:
        pixels, labels = digits.load(split)
        for copy in range(digits.NUM_COPIES if split == "train" else 1):
            moved = [digits.augmented(index, copy) for index in range(len(labels))] if copy else pixels
            captions = [digits.caption(int(label), copy * len(labels) + i) for i, label in enumerate(labels)]
            yield {"image": np.stack(list(moved)), "caption": np.array(captions, np.object_)}

    # One element per copy of the data set: each crossing from Python into tf.data costs half a millisecond.
    signature = {"image": tf.TensorSpec((None, 8, 8, 1), tf.uint8), "caption": tf.TensorSpec((None,), tf.string)}
    return tf.data.Dataset.from_generator(copies, output_signature=signature).unbatch()


_NUM_DIGITS = {"train": digits.NUM_TRAIN * digits.NUM_COPIES, "validation": digits.NUM_VALIDATION}
_DIGITS = seqio.FunctionDataSource(_digits, list(_NUM_DIGITS), _NUM_DIGITS)
add_task("digits_text_first", _DIGITS, image_first=False)
add_task("digits_image_first", _DIGITS, image_first=True)
# Equal rates: text first trains text-to-image, image first trains captioning.
seqio.MixtureRegistry.add("digits", [("digits_text_first", 1.0), ("digits_image_first", 1.0)])


def _instructions(template: str, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """As many edits, or questions, as there are digits and copies of them."""

    def copies() -> Iterator[dict[str, np.ndarray]]:
        pixels, labels = digits.load(split)
        for copy in range(_NUM_COPIES if split == "train" else 1):
            numbers = copy * len(labels) + np.arange(len(labels))
            images = np.stack([digits.augmented(index, copy) for index in range(len(labels))] if copy else pixels)
            if template == "edit":
                edits = [edit_of(int(number)) for number in numbers]
                texts = [edit.instruction for edit in edits]
                results = np.stack([edited(image, edit) for image, edit in zip(images, edits, strict=True)])
                yield {"image": images, "instruction": np.array(texts, np.object_), "edited": results}
            else:
                asked = [question_of(int(label), int(n)) for label, n in zip(labels, numbers, strict=True)]
                questions, answers = (np.array(texts, np.object_) for texts in zip(*asked, strict=True))
                yield {"image": images, "question": questions, "answer": answers}

    image, text = tf.TensorSpec((None, 8, 8, 1), tf.uint8), tf.TensorSpec((None,), tf.string)
    fields = {"edit": ("instruction", "edited"), "question": ("question", "answer")}[template]
    signature = {"image": image} | {name: image if name == "edited" else text for name in fields}
    return tf.data.Dataset.from_generator(copies, output_signature=signature).unbatch()


_NUM_COPIES = 12
_NUM_INSTRUCTIONS = {"train": digits.NUM_TRAIN * _NUM_COPIES, "validation": digits.NUM_VALIDATION}
for _template in ("edit", "question"):
    seqio.TaskRegistry.add(
        f"digits_{_template}s",
        source=seqio.FunctionDataSource(partial(_instructions, _template), list(_NUM_INSTRUCTIONS), _NUM_INSTRUCTIONS),
        preprocessors=[partial(instruction, template=_template)],
        output_features=OUTPUT_FEATURES,
    )
# Captioned digits stay among them, so that nothing is forgotten.
seqio.MixtureRegistry.add(
    "digits_instructions",
    [("digits_edits", 3.0), ("digits_questions", 1.5), ("digits_text_first", 1.0), ("digits_image_first", 0.5)],
)
