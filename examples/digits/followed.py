"""How well edits of unseen digits and questions about them are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.sets.base import Item
from cm3leon_jax.images import encode_png
from examples.digits import images as digits
from examples.digits.classifier import DigitClassifier
from examples.digits.instructions import EDITS, QUESTIONS, Edit, Pixels, edit_of, edited, question_of


@dataclass(frozen=True)
class DigitInstructions:
    """The fraction of edits and of answers that are right, over all held-out digits, and by type.

    An edit of the strokes is right if the image is nearer to what was asked for than to what any other edit, or none,
    would give. Another digit is right if the classifier says so.
    """

    headlines: ClassVar[dict[str, str]] = {
        "edit_accuracy": "of edits of unseen images are what was asked for",
        "question_accuracy": "of questions about unseen images are answered right",
    }

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        pixels, labels = digits.load("validation")
        types = [*EDITS, "turn"]
        edits = [edit_of(index, types[index % len(types)]) for index in range(len(pixels))]
        asked = [question_of(int(label), index, _question_type(index)) for index, label in enumerate(labels)]
        images = [encode_png(image) for image in pixels]
        edited_items = [
            Item(
                str(number),
                {"task": "edit", "prompt": edit.instruction, "image": image},
                image=None if edit.label is not None else encode_png(edited(original, edit)),
            )
            for number, (edit, image, original) in enumerate(zip(edits, images, pixels, strict=True))
        ]
        asked_items = [
            Item(str(number), {"task": "vqa", "prompt": question, "image": image}, references=(answer,))
            for number, ((question, answer), image) in enumerate(zip(asked, images, strict=True))
        ]
        generated = [result.candidates[0] for result in evaluation.complete("edits of digits", edited_items)]
        codes = np.stack([found.image for found in generated if found.image is not None])
        results = evaluation.model.image_tokenizer.decode(codes)
        answers = [result.candidates[0].text for result in evaluation.complete("questions about digits", asked_items)]
        is_right = are_right(pixels, edits, results)
        is_answered = np.array([answer == right for answer, (_, right) in zip(answers, asked, strict=True)])
        values: dict[str, float | Estimate] = {
            "edit_accuracy": _fraction(is_right),
            "question_accuracy": _fraction(is_answered),
            "edits_unedited": _fraction(
                np.array([is_unedited(*each) for each in zip(pixels, edits, results, strict=True)])
            ),
        }
        for type in types:
            values[f"edit_{type}_accuracy"] = _fraction(is_right[[edit.type == type for edit in edits]])
        for type in QUESTIONS:
            chosen = [_question_type(index) == type for index in range(len(asked))]
            values[f"question_{type}_accuracy"] = _fraction(is_answered[chosen])
        return values


def are_right(pixels: Sequence[Pixels], edits: Sequence[Edit], results: np.ndarray) -> np.ndarray:
    """Whether each result is what its edit asks for."""
    classes = DigitClassifier().classify(results)
    return np.array(
        [
            found == edit.label if edit.label is not None else _nearest(image, result) == edit.type
            for image, edit, result, found in zip(pixels, edits, results, classes, strict=True)
        ]
    )


def is_unedited(image: Pixels, edit: Edit, result: Pixels) -> bool:
    """Whether an edit's result is nearer to the image before it than to any that an edit would give."""
    return _nearest(image, result) == ""


def _nearest(image: Pixels, result: Pixels) -> str:
    """The edit of the strokes whose result is nearest; empty where that is the image itself."""
    possible = {"": image} | {type: edited(image, Edit(type, "")) for type in EDITS}
    distances = {type: np.sum((each.astype(float) - result) ** 2) for type, each in possible.items()}
    return min(distances, key=lambda type: distances[type])


def _question_type(index: int) -> str:
    return list(QUESTIONS)[index % len(QUESTIONS)]


def _fraction(is_right: np.ndarray) -> Estimate:
    return estimates.mean(is_right.astype(np.float64))
