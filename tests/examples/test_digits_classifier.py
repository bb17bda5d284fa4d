"""The classifier of digits: right on real ones, and each score measures what its name says."""

import numpy as np
import pytest

from examples.digits import images as digits
from examples.digits.classifier import DigitClassifier, score_captions


@pytest.fixture(scope="module")
def classifier():
    return DigitClassifier()


def test_it_classifies_unseen_real_digits(classifier):
    pixels, labels = digits.load("validation")
    assert (classifier.classify(pixels) == labels).mean() > 0.95


def test_images_are_scored_against_their_texts(classifier):
    pixels, labels = digits.load("train")
    texts = [f"a handwritten {digits.WORDS[label]}" for label in labels[:50]]
    scores = classifier.score_images("x", texts, pixels[:50])
    assert scores["x_accuracy"].value > 0.95
    assert scores["x_copy_share"] == 1.0
    assert scores["x_nearest_training_distance"] == 0.0
    wrong = classifier.score_images("x", texts[1:] + texts[:1], pixels[:50])
    assert wrong["x_accuracy"].value < 0.3
    repeated = classifier.score_images("x", texts[:4], np.repeat(digits.load("validation")[0][:1], 4, axis=0))
    assert repeated["x_distinct_share"] == 0.25
    assert repeated["x_copy_share"] == 0.0


def test_captions_are_scored_by_the_digit_they_name():
    texts = ["the digit 3", "a handwritten four", "zero", "a photo of the number 9"]
    found = ["someone wrote the number three", "4 4", "nothing", "nine or eight"]
    accuracy = score_captions("x", texts, found)["x_accuracy"]
    assert (accuracy.value, accuracy.n) == (0.5, 4)
