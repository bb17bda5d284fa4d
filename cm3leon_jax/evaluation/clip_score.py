"""CLIP score: how well generated images fit their prompts, by an encoder of texts and images (arXiv 2104.08718)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from cm3leon_jax.encoders.base import load_encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.features import encoder_features
from cm3leon_jax.evaluation.judge_files import JudgePath
from cm3leon_jax.ranges import PositiveInt


def clip_score(
    texts: Float32[np.ndarray, "n dim"], images: Float32[np.ndarray, "n dim"], groups: Sequence[object]
) -> Estimate:
    """100 times the mean cosine of each text and its image, given unit vectors; a negative one counts as it is.

    Args:
      texts: none of them zero.
      images: one for each text.
      groups: the prompt of each.
    """
    return estimates.mean(100 * np.einsum("nd,nd->n", texts.astype(np.float64), images), groups)


@dataclass(frozen=True)
class ClipScore:
    """CLIP score of all images, and of the best of each prompt; prompts of which the encoder reads nothing count not.

    Their number is `NAME_unread`.
    """

    tasks: ClassVar[tuple[str, ...]] = ("text_to_image",)

    # The folder of an encoder that compares texts with images.
    encoder: JudgePath
    # What its values are called.
    name: str = "clip_score"
    # The evaluation set whose prompts are sampled; empty: the prompts of the config.
    set: str = ""
    batch_size: PositiveInt = 64

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        encoder = load_encoder(self.encoder)
        if not encoder.is_joint:
            raise UserError(
                f"a clip_score metric cannot use the encoder {self.encoder}: it does not compare texts with images"
            )
        samples = evaluation.sampled(self.set)
        numbers = {text: number for number, text in enumerate(dict.fromkeys(samples.prompts))}
        texts = encoder.encode_texts(list(numbers))[[numbers[text] for text in samples.prompts]]
        is_read = texts.any(axis=1)
        if not is_read.any():
            raise UserError(f"a clip_score metric: the encoder {self.encoder} reads no token of any prompt")
        images = encoder_features(samples.images, encoder, self.batch_size)
        groups, is_best = np.array(samples.ids), samples.ranks == 0
        values: dict[str, float | Estimate] = {
            self.name: clip_score(texts[is_read], images[is_read], groups[is_read].tolist()),
            f"{self.name}_unread": float((~is_read).sum()),
        }
        if not is_best.all() and (kept := is_best & is_read).any():
            values[f"{self.name}_best"] = clip_score(texts[kept], images[kept], groups[kept].tolist())
        return values
