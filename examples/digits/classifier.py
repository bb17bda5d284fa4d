"""The judge of the demo: a classifier trained on real digits says which digit a generated image shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt8
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.image_tokenizers.base import ImageTokenizer
from examples.digits import images as digits


@dataclass(frozen=True)
class Digits:
    """How many sampled images, captions and infills are the digit of their text, and how many images are copies."""

    headlines: ClassVar[dict[str, str]] = {
        "text_to_image_accuracy": "of sampled images are classified as the digit of their prompt",
        "caption_accuracy": "of unseen images are captioned with the right digit",
        "infill_accuracy": "are still classified as their digit after the middle half was infilled",
    }

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        image_tokenizer, held_out = evaluation.model.image_tokenizer, evaluation.held_out
        shape = evaluation.originals.shape[1:]
        if shape != (8, 8, 1):
            raise UserError(
                f"the metric digits takes gray images of 8 pixels, and those of this run are {shape}: set "
                "config.image_tokenizer.resolution to 8 and in_channels to 1, or remove the metric"
            )
        classifier = DigitClassifier()
        prompts, texts = evaluation.sample_prompts, held_out.texts
        return (
            classifier.score_images("text_to_image", prompts, evaluation.sampled_images)
            | classifier.score_images("text_to_image_unguided", prompts, evaluation.unguided_images)
            | score_captions("caption", texts, evaluation.captions)
            | score_captions("caption_left_to_right", texts, evaluation.captions_left_to_right)
            | classifier.score_infills(evaluation)
            | classifier.score_itself(image_tokenizer)
        )


class DigitClassifier:
    """A support vector machine trained on the real training digits of scikit-learn."""

    def __init__(self) -> None:
        pixels, labels = digits.load("train")
        self._classifier = SVC(gamma=0.001).fit(_features(pixels), labels)
        self._training_images = NearestNeighbors(n_neighbors=1, algorithm="kd_tree").fit(
            _features(_all_training_images())
        )

    def classify(self, pixels: UInt8[np.ndarray, "n 8 8 1"]) -> Int[np.ndarray, "n"]:
        """Returns the digit in each image."""
        return self._classifier.predict(_features(pixels))

    def score_itself(self, image_tokenizer: ImageTokenizer) -> dict[str, float]:
        """Accuracy on real held-out digits, and on their reconstructions: upper bounds of the others."""
        pixels, labels = digits.load("validation")
        decoded = image_tokenizer.reconstruct(pixels)
        return {
            "real_digit_accuracy": float((self.classify(pixels) == labels).mean()),
            "reconstructed_digit_accuracy": float((self.classify(decoded) == labels).mean()),
        }

    def score_images(
        self, name: str, texts: Sequence[str], images: UInt8[np.ndarray, "n 8 8 1"]
    ) -> dict[str, float | Estimate]:
        """How many images are the digit of their text, and how far they are from copies of training images."""
        right = self.classify(images) == _labels(texts)
        distances = self._nearest_training_distance(images)
        distinct = len({image.tobytes() for image in images}) / len(images)
        held_out = self._nearest_training_distance(digits.load("validation")[0])
        return {
            f"{name}_accuracy": estimates.mean(right.astype(np.float64), texts),
            f"{name}_distinct_share": distinct,
            f"{name}_nearest_training_distance": float(distances.mean()),
            f"{name}_copy_share": float((distances == 0).mean()),
            "held_out_nearest_training_distance": float(held_out.mean()),
        }

    def score_infills(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        """How many infilled images are still their digit, and how many with the middle of another image."""
        codes, mask = evaluation.held_out.codes, evaluation.mask
        others = codes.copy()
        others[:, mask] = np.roll(codes, len(codes) // 2 + 1, axis=0)[:, mask]
        labels = _labels(evaluation.held_out.texts)
        random_middles = evaluation.model.image_tokenizer.decode(others)
        return {
            "infill_accuracy": _accuracy(self.classify(evaluation.infilled_images), labels),
            "infill_accuracy_of_random_middles": _accuracy(self.classify(random_middles), labels),
        }

    def _nearest_training_distance(self, pixels: UInt8[np.ndarray, "n 8 8 1"]) -> Float[np.ndarray, "n"]:
        """Root mean square difference, in gray levels of 16, to the nearest image of the training split."""
        distances, _ = self._training_images.kneighbors(_features(pixels))
        return distances[:, 0] / np.sqrt(pixels[0].size)


def score_captions(name: str, texts: Sequence[str], captions: Sequence[str]) -> dict[str, float | Estimate]:
    """How many captions name the digit of the true text, and no other."""
    return {f"{name}_accuracy": _accuracy(_labels(captions), _labels(texts))}


def _accuracy(found: Int[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> Estimate:
    return estimates.mean(((found == labels) & (found >= 0)).astype(np.float64))


def _all_training_images() -> UInt8[np.ndarray, "n 8 8 1"]:
    """All images of the training split, augmented copies included."""
    originals = digits.load("train")[0]
    copies = (digits.augmented(index, copy) for copy in range(1, digits.NUM_COPIES) for index in range(len(originals)))
    return np.concatenate([originals, np.stack(list(copies))])


def _features(pixels: UInt8[np.ndarray, "n 8 8 1"]) -> Float[np.ndarray, "n 64"]:
    """Pixels in the data set's own scale, 0 to 16."""
    return pixels.reshape(len(pixels), -1).astype(np.float64) * (16 / 255)


def _labels(texts: Sequence[str]) -> Int[np.ndarray, "n"]:
    return np.array([-1 if (label := digits.label_in(text)) is None else label for text in texts])
