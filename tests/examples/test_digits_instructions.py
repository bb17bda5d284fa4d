"""Instructions about digits: every edit is told from every other, and answers are true."""

import numpy as np
import pytest

from examples.digits import images as digits
from examples.digits.followed import are_right, is_unedited
from examples.digits.instructions import EDITS, QUESTIONS, Edit, edit_of, edited, question_of

TYPES = (*EDITS, "turn")


@pytest.fixture(scope="module")
def held_out():
    pixels, labels = digits.load("validation")
    edits = [edit_of(index, TYPES[index % len(TYPES)]) for index in range(len(pixels))]
    return pixels, labels, edits


def test_the_right_edit_is_right_and_no_other(held_out):
    pixels, _, edits = held_out
    truth = np.stack([edited(image, edit) for image, edit in zip(pixels, edits, strict=True)])
    assert are_right(pixels, edits, truth).mean() > 0.98
    # Only another digit can be right by chance: a three that is to be turned into one.
    assert are_right(pixels, edits, pixels).mean() < 0.03
    others = np.stack([edited(image, edit_of(0, TYPES[(i + 1) % 9])) for i, image in enumerate(pixels)])
    assert are_right(pixels, edits, others).mean() < 0.05


def test_an_unedited_image_is_noticed(held_out):
    pixels, _, edits = held_out
    assert all(is_unedited(image, edit, image) for image, edit in zip(pixels, edits, strict=True))
    changed = [is_unedited(image, Edit(t, ""), edited(image, Edit(t, ""))) for image in pixels[:40] for t in EDITS]
    assert np.mean(changed) < 0.02


def test_answers_are_true():
    for label in range(10):
        answers = {type: question_of(label, 3, type)[1] for type in QUESTIONS}
        assert answers == {
            "which": digits.WORDS[label],
            "parity": "odd" if label % 2 else "even",
            "size": "yes" if label > 5 else "no",
        }


def test_instructions_come_in_several_wordings():
    assert len({edit_of(index).instruction for index in range(2000)}) == sum(len(w) for _, w in EDITS.values()) + 30
    assert len({question_of(1, index)[0] for index in range(100)}) == 6
