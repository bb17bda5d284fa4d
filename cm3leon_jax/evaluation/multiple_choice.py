"""Questions with given choices: which one the model finds likeliest after the image and the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.likelihood import document_losses
from cm3leon_jax.evaluation.sets.base import Item
from cm3leon_jax.generation.instruction_prompt import Fields, instruction_prompt
from cm3leon_jax.generation.requests import Request, read_images
from cm3leon_jax.models.sharding import check_batch_divides
from cm3leon_jax.ranges import PositiveInt
from cm3leon_jax.vocabulary import Vocabulary


@dataclass(frozen=True)
class MultipleChoice:
    """The fraction of questions whose right choice is the likeliest: in all its tokens, and per token.

    The latter does not favor short choices. A document is the image, then the question and a choice, left to right.
    """

    tasks: ClassVar[tuple[str, ...]] = ("vqa",)

    # The evaluation set whose items have choices, and the right one as their only reference.
    set: str
    batch_size: PositiveInt = 16

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        asked = evaluation.asked(self.set, ("vqa",), "questions")
        items, requests = asked.items, asked.requests
        check_batch_divides(self.batch_size, evaluation.model.mesh)
        for item in items:
            if fault := _fault_of(item):
                raise asked.error(item, fault)
        vocabulary, longest = evaluation.model.vocabulary, evaluation.config.batch.sequence_length
        model, sources = evaluation.model, (image for request in requests for image in request.images)
        images = read_images(sources, model.image_tokenizer, model.squaring)
        rows, lengths = [], []
        for item, request in zip(items, requests, strict=True):
            codes = images[request.image] if request.image is not None else "no image"
            if isinstance(codes, str):
                raise asked.error(item, codes)
            for choice in item.choices:
                document, length = _document(request, codes, choice, vocabulary)
                if len(document) + 1 > longest:
                    raise asked.error(
                        item,
                        f"image, question and choice are {len(document)} tokens, more than "
                        f"config.batch.sequence_length {longest} holds: shorten them",
                    )
                rows.append((list[np.ndarray](), document))
                lengths.append(length)
        losses = document_losses(rows, evaluation, self.batch_size)
        # The last loss is that of the end of the document.
        sums = np.array([-float(of_row[-1 - length :].sum()) for of_row, length in zip(losses, lengths, strict=True)])
        counts = [len(item.choices) for item in items]
        right = [item.choices.index(item.references[0]) for item in items]
        return {
            "choices_accuracy": estimates.mean(is_likeliest(sums, counts, right)),
            "choices_accuracy_per_token": estimates.mean(is_likeliest(sums / (1 + np.array(lengths)), counts, right)),
            "choices_chance": float(np.mean([1 / count for count in counts])),
        }


def is_likeliest(scores: Float[np.ndarray, "c"], counts: Sequence[int], right: Sequence[int]) -> Float[np.ndarray, "n"]:
    """1 for each question whose right choice alone has the highest score, else 0.

    Args:
      scores: of all choices of all questions, one question after the other.
      counts: the number of choices of each question.
      right: the index of its right one.
    """
    found = []
    for of_question, index in zip(np.split(scores, np.cumsum(counts)[:-1]), right, strict=True):
        others = np.delete(of_question, index)
        found.append(float(of_question[index] > others.max()))
    return np.array(found)


def _fault_of(item: Item) -> str:
    if len(item.choices) < 2:
        return "a multiple_choice metric needs at least two choices"
    if len(item.references) != 1 or item.references[0] not in item.choices:
        return "its only reference has to be one of its choices"
    return ""


def _document(
    request: Request, codes: Int[np.ndarray, "codes"], choice: str, v: Vocabulary
) -> tuple[Int[np.ndarray, "n"], int]:
    """The document, and how many of its last tokens are the choice's."""
    fields: Fields = {"image": codes, "question": request.prompt}
    prompt = instruction_prompt("question_after_image", fields, len(codes), 1, v).variants[0].tokens
    answer = v.encode_text(f" {choice.strip()}")
    # The prompt begins with `</s>`.
    return np.array([*prompt[1:], *answer], np.int32), len(answer)
