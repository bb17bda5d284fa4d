"""How well the image tokenizer reconstructs held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.evaluation.context import EvaluationContext


@dataclass(frozen=True)
class Reconstruction:
    """PSNR of the held-out images that `prepare` kept; nothing where it kept none."""

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float]:
        if not len(evaluation.originals):
            return {}
        return {"reconstruction_psnr": psnr(evaluation.originals, evaluation.reconstructions)}


def psnr(originals: UInt8[np.ndarray, "n R R C"], others: UInt8[np.ndarray, "n R R C"]) -> float:
    """Peak signal-to-noise ratio over all pixels, in dB."""
    error = np.mean(np.square(originals.astype(np.float64) - others))
    return float(10 * np.log10(255**2 / max(error, 1e-12)))
