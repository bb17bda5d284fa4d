"""How well captions fit what people wrote: CIDEr-D, BLEU, ROUGE-L, exact matches, and the objects they name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.caption_scores import Tokens, bleu, bleu_counts, cider_d, rouge_l
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.ptb_tokenizer import caption_tokens


@dataclass(frozen=True)
class Captions:
    """CIDEr-D (papers report 100 times it), BLEU-1 to BLEU-4, ROUGE-L and exact matches of tokenized captions.

    An empty caption scores 0 and is counted.
    """

    tasks: ClassVar[tuple[str, ...]] = ("caption",)

    # The evaluation set whose images are captioned; empty: the held-out split.
    set: str = ""
    # Names of objects whose recall is measured, each with its other forms, as in "dog|dogs|puppy".
    names: tuple[str, ...] = ()

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        texts = evaluation.captioned(self.set)
        if not texts.predictions:
            raise UserError(f"a captions metric: the evaluation set {self.set!r} has no images to caption")
        predictions = [caption_tokens(text) for text in texts.predictions]
        references = [[caption_tokens(text) for text in of_image] for of_image in texts.references]
        for name, of_image in zip(texts.ids, references, strict=True):
            if not any(of_image):
                raise UserError(f"a captions metric: the image {name} of {self.set!r} has no reference with a word")
        counts, n = bleu_counts(predictions, references), len(predictions)
        exact = [float(tokens in of_image) for tokens, of_image in zip(predictions, references, strict=True)]
        values: dict[str, float | Estimate] = {
            "captions_cider": estimates.mean(cider_d(predictions, references)),
            "captions_rouge": estimates.mean(rouge_l(predictions, references)),
            "captions_exact": estimates.mean(exact),
            "captions_empty": float(sum(not tokens for tokens in predictions)),
        }

        def bleu_of(index: int) -> Estimate:
            return estimates.bootstrap(lambda items: float(bleu(counts, items)[index]), n)

        values |= {f"captions_bleu{index + 1}": bleu_of(index) for index in range(4)}
        if self.names:
            recalls = object_recalls(predictions, references, self.names)
            if not recalls:
                raise UserError("a captions metric: no reference has any of its names: give such as the captions use")
            values["captions_object_recall"] = estimates.mean(recalls)
        return values


def object_recalls(
    predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]], names: Iterable[str]
) -> list[float]:
    """Of each item with a reference that names an object: the fraction of those objects that the prediction names."""
    forms = [[caption_tokens(form) for form in name.split("|")] for name in names]

    def named(tokens: Tokens) -> set[int]:
        padded = f" {' '.join(tokens)} "
        return {
            index for index, of_name in enumerate(forms) if any(f" {' '.join(form)} " in padded for form in of_name)
        }

    recalls = []
    for prediction, of_item in zip(predictions, references, strict=True):
        if expected := set().union(*map(named, of_item)):
            recalls.append(len(named(prediction) & expected) / len(expected))
    return recalls
