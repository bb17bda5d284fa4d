"""Reads drawn digits: a classifier that knows only real ones says whether an image is the digit that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from cm3leon_jax.generation.requests import MIDDLE_HALF, region_mask
from cm3leon_jax.image_tokenizers.base import ImageTokenizer
from examples.digits import images as digits


class DigitClassifier:
    """A support vector machine trained on the real training digits of scikit-learn, as they are."""

    def __init__(self) -> None:
        pixels, labels = digits.load("train")
        self._classifier = SVC(gamma=0.001).fit(_features(pixels), labels)
        self._training_images = NearestNeighbors(n_neighbors=1, algorithm="kd_tree").fit(
            _features(_all_training_images())
        )

    def read(self, pixels: UInt8[np.ndarray, "n 8 8 1"]) -> Int[np.ndarray, "n"]:
        """The digit in each image."""
        return self._classifier.predict(_features(pixels))

    def score_reading(self, image_tokenizer: ImageTokenizer) -> dict[str, float]:
        """What the reader reaches on real held-out digits, and on those after the image tokenizer: the ceilings."""
        pixels, labels = digits.load("validation")
        decoded = image_tokenizer.reconstruct(pixels)
        return {
            "real_digit_accuracy": float((self.read(pixels) == labels).mean()),
            "reconstructed_digit_accuracy": float((self.read(decoded) == labels).mean()),
        }

    def score_drawings(self, name: str, texts: Sequence[str], drawn: UInt8[np.ndarray, "n 8 8 1"]) -> dict[str, float]:
        """How many drawings are what their text asked for; how far they are from copies of training images."""
        right = self.read(drawn) == _labels(texts)
        distances = self._nearest_training_distance(drawn)
        distinct = len({image.tobytes() for image in drawn}) / len(drawn)
        held_out = self._nearest_training_distance(digits.load("validation")[0])
        return {
            f"{name}_accuracy": float(right.mean()),
            f"{name}_distinct_share": distinct,
            f"{name}_nearest_training_distance": float(distances.mean()),
            f"{name}_copy_share": float((distances == 0).mean()),
            "held_out_nearest_training_distance": float(held_out.mean()),
        }

    def score_captions(self, name: str, texts: Sequence[str], captions: Sequence[str]) -> dict[str, float]:
        """How many captions name the digit that the true one names, and no other."""
        found = [digits.label_in(caption) for caption in captions]
        return {f"{name}_accuracy": float(np.mean([a == b for a, b in zip(found, _labels(texts), strict=True)]))}

    def score_infills(
        self,
        texts: Sequence[str],
        codes: Int[np.ndarray, "n codes"],
        filled: Int[np.ndarray, "n codes"],
        image_tokenizer: ImageTokenizer,
    ) -> dict[str, float]:
        """How many filled-in images are read as their digit, beside the same with another image's middle."""
        mask = region_mask(MIDDLE_HALF, image_tokenizer.config.grid)
        others = codes.copy()
        others[:, mask] = np.roll(codes, len(codes) // 2 + 1, axis=0)[:, mask]
        labels = _labels(texts)
        return {
            "infill_accuracy": float((self.read(image_tokenizer.decode(filled)) == labels).mean()),
            "infill_accuracy_of_random_middles": float((self.read(image_tokenizer.decode(others)) == labels).mean()),
        }

    def _nearest_training_distance(self, pixels: UInt8[np.ndarray, "n 8 8 1"]) -> Float[np.ndarray, "n"]:
        """Root mean square difference, in gray levels of 16, to the nearest image of the training split."""
        distances, _ = self._training_images.kneighbors(_features(pixels))
        return distances[:, 0] / np.sqrt(pixels[0].size)


def _all_training_images() -> UInt8[np.ndarray, "n 8 8 1"]:
    """Every image that training saw, the augmented copies too."""
    originals = digits.load("train")[0]
    copies = (digits.augmented(index, copy) for copy in range(1, digits.NUM_COPIES) for index in range(len(originals)))
    return np.concatenate([originals, np.stack(list(copies))])


def _features(pixels: UInt8[np.ndarray, "n 8 8 1"]) -> Float[np.ndarray, "n 64"]:
    """Pixels in the data set's own scale, 0 to 16."""
    return pixels.reshape(len(pixels), -1).astype(np.float64) * (16 / 255)


def _labels(texts: Sequence[str]) -> Int[np.ndarray, "n"]:
    return np.array([-1 if (label := digits.label_in(text)) is None else label for text in texts])
