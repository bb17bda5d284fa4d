"""The reader of digits: good on real ones, and every score is what it says."""

import numpy as np
import pytest

from examples.digits import images as digits
from examples.digits.classifier import DigitClassifier


@pytest.fixture(scope="module")
def reader():
    return DigitClassifier()


def test_it_reads_unseen_real_digits(reader):
    pixels, labels = digits.load("validation")
    assert (reader.read(pixels) == labels).mean() > 0.95


def test_drawings_are_scored_against_their_texts(reader):
    pixels, labels = digits.load("train")
    texts = [f"a handwritten {digits.WORDS[label]}" for label in labels[:50]]
    scores = reader.score_drawings("x", texts, pixels[:50])
    assert scores["x_accuracy"] > 0.95
    assert scores["x_copy_share"] == 1.0
    assert scores["x_nearest_training_distance"] == 0.0
    wrong = reader.score_drawings("x", texts[1:] + texts[:1], pixels[:50])
    assert wrong["x_accuracy"] < 0.3
    repeated = reader.score_drawings("x", texts[:4], np.repeat(digits.load("validation")[0][:1], 4, axis=0))
    assert repeated["x_distinct_share"] == 0.25
    assert repeated["x_copy_share"] == 0.0


def test_captions_are_scored_by_the_digit_they_name(reader):
    texts = ["the digit 3", "a handwritten four", "zero", "a photo of the number 9"]
    found = ["someone wrote the number three", "4 4", "nothing", "nine or eight"]
    assert reader.score_captions("x", texts, found) == {"x_accuracy": 0.5}
