"""An evaluation whose images are given, and an encoder that is a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from cm3leon_jax.encoders.base import Encoder, l2_normalize
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.set_results import SampledImages


class GivenImages(EvaluationContext):
    """Samples and real images as they were given."""

    def sampled(self, name: str = "") -> SampledImages:
        return self.__dict__["samples"]

    def real_images(self, name: str = "") -> np.ndarray:
        return self.__dict__["real"]


def given_images(
    generated: np.ndarray, real: np.ndarray, prompts: Sequence[str] | None = None, per_prompt: int = 1, **members: Any
) -> GivenImages:
    """An evaluation of `per_prompt` images of each prompt, one after the other."""
    names = list(prompts or [f"prompt {index // per_prompt}" for index in range(len(generated))])
    ranks = np.arange(len(generated)) % per_prompt
    config = SimpleNamespace(
        image_tokenizer=SimpleNamespace(resolution=generated.shape[1]), corpus=SimpleNamespace(train_split="train")
    )
    evaluation = object.__new__(GivenImages)
    members = {"config": config, "kept": {}} | members
    evaluation.__dict__.update(samples=SampledImages(names, names, generated, ranks), real=real, **members)
    return evaluation


class ColorEncoder(Encoder):
    """Vectors of images are their mean colors in each quarter, those of texts what a function says."""

    family = "colors"
    dim = 12

    def __init__(self, of_text: Callable[[str], np.ndarray] | None = None) -> None:
        super().__init__({})
        self._of_text, self.is_joint = of_text, of_text is not None  # type: ignore[misc]

    def encode_texts(self, texts: Sequence[str], dropout: float = 0.0, keys: np.ndarray | None = None) -> np.ndarray:
        assert self._of_text is not None
        return l2_normalize(np.stack([self._of_text(text) for text in texts]).astype(np.float32))

    def encode_images(self, images: np.ndarray, dropout: float = 0.0, keys: np.ndarray | None = None) -> np.ndarray:
        n, side, _, channels = images.shape
        quarters = images.reshape(n, 2, side // 2, 2, side // 2, channels).mean(axis=(2, 4))
        quarters = np.broadcast_to(quarters, (n, 2, 2, 3)).reshape(n, 12)
        return l2_normalize((quarters - 100).astype(np.float32))
