"""Choices are scored by their own tokens, and the likeliest has to be the right one."""

import dataclasses

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.config import EvaluateConfig
from cm3leon_jax.evaluation.multiple_choice import MultipleChoice, _document, _fault_of, is_likeliest
from cm3leon_jax.evaluation.sets.base import Item
from cm3leon_jax.evaluation.sets.configured import build_sets
from cm3leon_jax.generation.requests import Request
from tests.conftest import IMAGE_LENGTH
from tests.evaluation.contexts import evaluation_with


def test_the_right_choice_has_to_be_the_likeliest_alone():
    scores = np.array([-1.0, -2.0, -3.0, -3.0, -2.0, -5.0, -4.0])
    assert is_likeliest(scores, [3, 2, 2], [0, 1, 1]).tolist() == [1, 1, 1]
    assert is_likeliest(scores, [3, 2, 2], [1, 0, 0]).tolist() == [0, 0, 0]
    assert is_likeliest(np.array([-1.0, -1.0]), [2], [0]).tolist() == [0], "a tie is no answer"


@pytest.mark.parametrize("choice", ["nine", "the number 9", " 9 "])
def test_the_tokens_of_a_choice_are_those_after_the_question(vocabulary, choice):
    request = Request(task="vqa", prompt="Which digit is it?")
    codes = np.arange(IMAGE_LENGTH)
    document, length = _document(request, codes, choice, vocabulary)
    assert vocabulary.decode_image(document[:IMAGE_LENGTH]).tolist() == codes.tolist()
    assert document[IMAGE_LENGTH] == vocabulary.break_
    text = document[IMAGE_LENGTH + 1 :].tolist()
    assert vocabulary.decode_text(text) == f"Question: Which digit is it? Answer: {choice.strip()}"
    assert vocabulary.decode_text(text[-length:]).strip() == choice.strip()


def test_items_that_are_no_multiple_choice_are_refused():
    item = Item("1", {"task": "vqa"}, references=("a",), choices=("a", "b"))
    assert _fault_of(item) == ""
    assert "two choices" in _fault_of(dataclasses.replace(item, choices=("a",)))
    assert "one of its choices" in _fault_of(dataclasses.replace(item, references=("c",)))
    assert "one of its choices" in _fault_of(dataclasses.replace(item, references=("a", "b")))


def test_a_set_that_asks_for_another_task_is_refused(tmp_path):
    (tmp_path / "set.jsonl").write_text('{"task": "caption", "image": "1.png", "references": ["a"]}\n')
    sets = build_sets(EvaluateConfig(sets={"mine": {"type": "prompts", "file": str(tmp_path / "set.jsonl")}}))
    with pytest.raises(UserError, match=r"sets\.mine asks for caption, and a metric needs questions"):
        MultipleChoice("mine")(evaluation_with(sets=sets))
