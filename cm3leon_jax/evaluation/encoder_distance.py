"""Frechet distance, CMMD, precision, recall, density and coverage of generated images, on vectors of an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from cm3leon_jax.encoders.base import load_encoder
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.features import encoder_features
from cm3leon_jax.evaluation.image_arrays import ImageArray
from cm3leon_jax.evaluation.judge_files import JudgePath
from cm3leon_jax.evaluation.kernel_distance import cmmd
from cm3leon_jax.evaluation.reference import compare_with_reference
from cm3leon_jax.paths import OptionalPath
from cm3leon_jax.ranges import PositiveInt


@dataclass(frozen=True)
class EncoderDistance:
    """Distances between generated and real images, as an encoder sees them; CMMD where it is a CLIP."""

    tasks: ClassVar[tuple[str, ...]] = ("text_to_image",)

    # The folder of the encoder.
    encoder: JudgePath
    # What its values' names begin with: `clip_frechet`, `clip_cmmd`.
    name: str = "encoder"
    # A folder of real images, or an .npz of mu and sigma; empty: the real images of the set.
    reference: OptionalPath = ""
    # The evaluation set whose prompts are sampled; empty: the prompts of the config.
    set: str = ""
    batch_size: PositiveInt = 64

    def __call__(self, evaluation: EvaluationContext) -> dict[str, Estimate]:
        encoder = load_encoder(self.encoder)

        def features(images: ImageArray) -> Float32[np.ndarray, "n F"]:
            return encoder_features(images, encoder, self.batch_size)

        found = compare_with_reference(self, evaluation, features, cmmd)
        return {f"{self.name}_{name.replace('discrepancy', 'cmmd')}": value for name, value in found.items()}
