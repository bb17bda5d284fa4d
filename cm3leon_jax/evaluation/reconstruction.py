"""How well the image tokenizer reconstructs held-out images, and how much of its codebook they use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float64, Int, UInt8

from cm3leon_jax.config_part import require
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.features import in_batches, inception_features
from cm3leon_jax.evaluation.frechet import frechet_distance
from cm3leon_jax.evaluation.inception import load_inception
from cm3leon_jax.evaluation.judge_files import OptionalJudgePath
from cm3leon_jax.evaluation.resize import PREPROCESSING
from cm3leon_jax.evaluation.ssim import WINDOWS, ssim
from cm3leon_jax.image_tokenizers.vqgan.lpips import SMALLEST_SIDE, load_lpips, lpips_distance
from cm3leon_jax.ranges import PositiveInt

# PSNR of an image without any error, in dB; a single level in a single pixel of 256x256 RGB is 101.
_NO_ERROR = 100.0


@dataclass(frozen=True)
class Reconstruction:
    """PSNR, SSIM, LPIPS and rFID of the held-out images that `prepare` kept, where it kept any; use of the codebook.

    PSNR and SSIM are means over images. The codebook's values are of the codes of all held-out images.
    """

    # Safetensors files: VGG16 with the linear layers of LPIPS, and Inception-v3. Without one, its value is not there.
    lpips_weights: OptionalJudgePath = ""
    inception_weights: OptionalJudgePath = ""
    # Of rFID, as in the metric `fid`.
    preprocessing: str = "clean-fid"
    # Of SSIM: "gaussian" as in the paper, or "uniform" of 7x7 pixels.
    ssim_window: str = "gaussian"
    batch_size: PositiveInt = 16

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("preprocessing", self.preprocessing, PREPROCESSING),
            ("ssim_window", self.ssim_window, WINDOWS),
        ):
            require(
                value in choices,
                f"a reconstruction metric's {name} is {value!r}: the choices are {', '.join(choices)}",
            )

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        # The image tokenizer does not change while a model trains.
        return evaluation.keep(self, lambda: self._values(evaluation))

    def _values(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        codebook_size = evaluation.model.image_tokenizer.config.codebook_size
        values: dict[str, float | Estimate] = dict(codebook_use(evaluation.held_out.codes, codebook_size))
        if len(originals := evaluation.originals):
            values |= dict(self._of_images(originals, evaluation.reconstructions))
        return values

    def _of_images(
        self, originals: UInt8[np.ndarray, "n R R C"], others: UInt8[np.ndarray, "n R R C"]
    ) -> Iterator[tuple[str, Estimate]]:
        side = originals.shape[1]
        yield "reconstruction_psnr", estimates.mean(psnr(originals, others))
        if side >= WINDOWS[self.ssim_window]:
            yield "reconstruction_ssim", estimates.mean(ssim(originals, others, self.ssim_window))
        if self.lpips_weights and side >= SMALLEST_SIDE:
            yield "reconstruction_lpips", estimates.mean(lpips(originals, others, self.lpips_weights, self.batch_size))
        if self.inception_weights and len(originals) > 1:
            weights = load_inception(self.inception_weights)
            real, features = (
                inception_features(images, weights, self.preprocessing, self.batch_size)
                for images in (originals, others)
            )
            yield "rfid", frechet_distance(real, features)


def psnr(originals: UInt8[np.ndarray, "n R R C"], others: UInt8[np.ndarray, "n R R C"]) -> Float64[np.ndarray, "n"]:
    """Peak signal-to-noise ratio of each image, in dB, at most 100."""
    pairs = zip(originals, others, strict=True)
    errors = np.array([np.mean(np.square(a.astype(np.float64) - b)) for a, b in pairs])
    return np.minimum(10 * np.log10(255**2 / np.maximum(errors, 1e-12)), _NO_ERROR)


def lpips(
    originals: UInt8[np.ndarray, "n R R C"], others: UInt8[np.ndarray, "n R R C"], weights: str, batch_size: int
) -> Float64[np.ndarray, "n"]:
    """LPIPS on VGG16 of each image.

    Raises:
      UserError: if the weights cannot be read, or are of another network.
    """
    on_device, distance = jax.device_put(load_lpips(weights)), jax.jit(lpips_distance)
    pairs = np.stack([originals, others], axis=1)
    found = in_batches(
        lambda pixels: distance(on_device, pixels[:, 0], pixels[:, 1])[:, None],
        lambda pair: pair.astype(np.float32) / 127.5 - 1,
        pairs,
        batch_size,
        "LPIPS",
    )
    return found[:, 0].astype(np.float64)


def codebook_use(codes: Int[np.ndarray, "n codes"], codebook_size: int) -> dict[str, Estimate]:
    """The fraction of the codebook that occurs, and the perplexity, exp(entropy), of how often each code does.

    Intervals are over images, by what leaving each one out changes (jackknife pseudo-values): in a plain bootstrap,
    where images repeat, codes are missing.
    """
    counts = np.bincount(codes.ravel(), minlength=codebook_size)
    per_image = [np.unique(image, return_counts=True) for image in codes]
    used, perplexity = _use(counts, codebook_size)
    without = []
    for present, often in per_image:
        counts[present] -= often
        without.append(_use(counts, codebook_size) if len(codes) > 1 else (used, perplexity))
        counts[present] += often
    values = {"codebook_used": used, "codebook_perplexity": perplexity}
    return {
        name: _jackknifed(value, np.array([each[column] for each in without]))
        for column, (name, value) in enumerate(values.items())
    }


def _use(counts: Int[np.ndarray, "V"], codebook_size: int) -> tuple[float, float]:
    present = counts[counts > 0] / counts.sum()
    return len(present) / codebook_size, float(np.exp(-np.sum(present * np.log(present))))


def _jackknifed(value: float, without: Float64[np.ndarray, "n"]) -> Estimate:
    found = estimates.mean(value + (len(without) - 1) * (without.mean() - without))
    return Estimate(value, found.low, found.high, found.n)
