"""Scores answers to questions as VQAv2 does (arXiv 1505.00468, section 3; arXiv 1612.00837).

Each answer, of the model as of the people, is normalized: punctuation goes, or becomes a space; so do periods that no
digit follows; words are in lower case, the numbers to ten are digits, articles go, and contractions without their
apostrophe get it. What the model answered then counts by how many people answered it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_PERIOD = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
)
# By what it looks like without one of its apostrophes; one entry of the official table is the other way round.
_WITH_APOSTROPHE = {
    word[:index] + word[index + 1 :]: word
    for word in _CONTRACTIONS.split()
    for index, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}
# A person who agrees with three others is as right as one can be.
_ENOUGH = 3


def normalize_answer(text: str) -> str:
    """Writes an answer as the official evaluation compares it."""
    text = re.sub(r"[\n\t]", " ", text).strip()
    # Punctuation next to a space goes; within words it becomes one; where a comma is part of a number, all goes.
    has_thousands = _THOUSANDS.search(text) is not None
    clean = text
    for sign in _PUNCTUATION:
        goes = has_thousands or f"{sign} " in text or f" {sign}" in text
        clean = clean.replace(sign, "" if goes else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", clean).lower().split())
    return " ".join(_WITH_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The mean over people of min(1, how many of the others gave this answer / 3): 1 from four equal answers on."""
    matches = sum(answer == prediction for answer in answers)
    with_others = min(1.0, matches / _ENOUGH)
    without_own = min(1.0, (matches - 1) / _ENOUGH)
    return (matches * without_own + (len(answers) - matches) * with_others) / len(answers) if matches else 0.0


def vqa_accuracies(predictions: Sequence[str], answers: Sequence[Sequence[str]], as_published: bool) -> list[float]:
    """The accuracy of each answer, normalized.

    Args:
      as_published: the published program leaves both as they are where all people agree, so that "Black." is wrong
        where all said "black"; later evaluations correct it.
    """
    return [
        vqa_accuracy(prediction.strip(), [answer.strip() for answer in of_question])
        if as_published and len({answer.strip() for answer in of_question}) == 1
        else vqa_accuracy(normalize_answer(prediction), [normalize_answer(answer) for answer in of_question])
        for prediction, of_question in zip(predictions, answers, strict=True)
    ]


@dataclass(frozen=True)
class Answers:
    """VQA accuracy, and the fraction of answers that some person gave; both of normalized answers.

    Where a question has fewer than four human answers there is no VQA accuracy, but exact matches alone.
    """

    tasks: ClassVar[tuple[str, ...]] = ("vqa",)

    # The evaluation set that is answered.
    set: str

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        texts = evaluation.answered(self.set)
        if not texts.predictions:
            raise UserError(f"an answers metric: the evaluation set {self.set!r} has no questions")
        predictions = [normalize_answer(text) for text in texts.predictions]
        exact = [
            float(bool(text) and text in map(normalize_answer, of_question))
            for text, of_question in zip(predictions, texts.references, strict=True)
        ]
        values: dict[str, float | Estimate] = {
            "answers_exact": estimates.mean(exact),
            "answers_empty": float(sum(not text for text in predictions)),
        }
        if min(map(len, texts.references)) > _ENOUGH:
            for name, as_published in (("answers_vqa", False), ("answers_vqa_as_published", True)):
                values[name] = estimates.mean(vqa_accuracies(texts.predictions, texts.references, as_published))
        return values
