"""The digits corpus: split, captions, augmentation."""

import numpy as np
import pytest

from examples.digits import images as digits


def test_splits_cover_the_set_in_order():
    train, train_labels = digits.load("train")
    held_out, held_out_labels = digits.load("validation")
    assert train.shape == (1437, 8, 8, 1) and held_out.shape == (360, 8, 8, 1)
    assert len(train_labels) == 1437 and len(held_out_labels) == 360
    assert train.dtype == np.uint8 and train.max() == 255 and train.min() == 0
    assert set(train_labels) == set(held_out_labels) == set(range(10))


@pytest.mark.parametrize("template", digits.TEMPLATES)
def test_label_is_read_back_from_every_template(template):
    for label, word in enumerate(digits.WORDS):
        assert digits.label_in(template.format(word=word, numeral=label)) == label
        assert digits.label_in(template.format(word=word, numeral=label).upper()) == label


def test_captions_are_deterministic_and_use_every_template():
    captions = [digits.caption(7, index) for index in range(400)]
    assert captions == [digits.caption(7, index) for index in range(400)]
    assert len(set(captions)) == len(digits.TEMPLATES)


@pytest.mark.parametrize("text", ["", "a handwritten", "the digit 3 or 4", "seven eight", "the number 12", "weight"])
def test_absent_or_ambiguous_digits_have_no_label(text):
    assert digits.label_in(text) is None


def test_a_digit_named_twice_is_not_ambiguous():
    assert digits.label_in("seven, the digit 7") == 7


def test_augmentation_is_deterministic_modest_and_leaves_copy_zero_alone():
    train, _ = digits.load("train")
    np.testing.assert_array_equal(digits.augmented(5, 0), train[5])
    np.testing.assert_array_equal(digits.augmented(5, 3), digits.augmented(5, 3))
    assert not np.array_equal(digits.augmented(5, 3), digits.augmented(5, 4))
    difference = [
        np.abs(digits.augmented(i, 1).astype(float) - train[i]).mean() / train[i].astype(float).mean()
        for i in range(50)
    ]
    assert 0.05 < np.mean(difference) < 0.6
