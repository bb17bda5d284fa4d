"""FID, KID, precision, recall, density and coverage of generated images, on features of Inception-v3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from cm3leon_jax.config_part import require
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.features import inception_features
from cm3leon_jax.evaluation.image_arrays import ImageArray
from cm3leon_jax.evaluation.inception import load_inception
from cm3leon_jax.evaluation.judge_files import JudgePath
from cm3leon_jax.evaluation.kernel_distance import kid
from cm3leon_jax.evaluation.reference import compare_with_reference
from cm3leon_jax.evaluation.resize import PREPROCESSING
from cm3leon_jax.paths import OptionalPath
from cm3leon_jax.ranges import PositiveInt

# The names of the distances' values here.
_NAMES = {"discrepancy": "kid"} | {name: f"inception_{name}" for name in ("precision", "recall", "density", "coverage")}


@dataclass(frozen=True)
class FrechetInceptionDistance:
    """FID of the best image of each prompt (`fid`), of those of each lower rank and of all; the rest of the best."""

    tasks: ClassVar[tuple[str, ...]] = ("text_to_image",)

    # A safetensors file that `evaluation/inception.py` says how to make.
    weights: JudgePath
    # A folder of real images, or an .npz of mu and sigma; empty: the real images of the set.
    reference: OptionalPath = ""
    # The evaluation set whose prompts are sampled; empty: the prompts of the config.
    set: str = ""
    # Whose distances are reproduced: "clean-fid" or "pytorch-fid".
    preprocessing: str = "clean-fid"
    batch_size: PositiveInt = 16

    def __post_init__(self) -> None:
        require(
            self.preprocessing in PREPROCESSING,
            f"a fid metric's preprocessing is {self.preprocessing!r}: the choices are {', '.join(PREPROCESSING)}",
        )

    def __call__(self, evaluation: EvaluationContext) -> dict[str, Estimate]:
        weights = load_inception(self.weights)

        def features(images: ImageArray) -> Float32[np.ndarray, "n F"]:
            return inception_features(images, weights, self.preprocessing, self.batch_size)

        found = compare_with_reference(self, evaluation, features, kid)
        return {_NAMES.get(name, name.replace("frechet", "fid")): value for name, value in found.items()}
