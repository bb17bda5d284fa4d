"""VQA accuracy: the official rules of normalization, as a table of cases, and the leave-one-out formula."""

import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.answers import Answers, normalize_answer, vqa_accuracies, vqa_accuracy
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.set_results import ComparedTexts
from tests.evaluation.contexts import evaluation_with


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        # Case, white space, articles.
        (" The  Dog\n", "dog"),
        ("a\tcat", "cat"),
        ("An apple on the A train", "apple on train"),
        # Numbers.
        ("None", "0"),
        ("zero one TWO ten eleven", "0 1 2 10 eleven"),
        # Punctuation within words becomes a space, next to a space it goes everywhere.
        ("t-shirt", "t shirt"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("t-shirt -blue", "tshirt blue"),
        ("what?", "what"),
        ("yes, sir!", "yes sir"),
        ("yes,sir", "yes sir"),
        ("(left) side", "left side"),
        ("a_b@c`d", "b c d"),
        # These are no punctuation.
        ("$5 & 10% #1: it's", "$5 & 10% #1: it's"),
        # A number with a comma takes all punctuation out.
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("1 , 000", "1 000"),
        # Periods go, but not before a digit.
        ("Mr. Smith.", "mr smith"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("U.S.", "us"),
        # Contractions get their apostrophe.
        ("dont", "don't"),
        ("Im", "im"),
        ("DOESNT", "doesn't"),
        ("shouldnt've shouldn'tve", "shouldn't've shouldn't've"),
        ("y'all'dve", "y'all'd've"),
        ("oclock", "o'clock"),
        ("somebody'd", "somebodyd"),
        ("he'll hell", "he'll hell"),
        ("", ""),
        ("the", ""),
    ],
)
def test_answers_are_normalized_by_the_official_rules(answer, normal):
    assert normalize_answer(answer) == normal


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)],
)
def test_accuracy_is_the_mean_over_the_others_of_each_person(matches, accuracy):
    answers = ["yes"] * matches + [f"no {index}" for index in range(10 - matches)]
    assert vqa_accuracy("yes", answers) == pytest.approx(accuracy)
    by_person = []
    for index in range(10):
        others = answers[:index] + answers[index + 1 :]
        by_person.append(min(1, others.count("yes") / 3))
    assert vqa_accuracy("yes", answers) == pytest.approx(sum(by_person) / 10)


def test_where_all_agree_the_published_program_normalizes_nothing():
    agreed, divided = ["black"] * 10, ["black"] * 9 + ["gray"]
    assert vqa_accuracies(["Black.", "Black.", "black"], [agreed, divided, agreed], as_published=True) == [0, 1, 1]
    assert vqa_accuracies(["Black.", "Black.", "black"], [agreed, divided, agreed], as_published=False) == [1, 1, 1]


def answered(predictions: list[str], references: list[tuple[str, ...]]) -> EvaluationContext:
    ids = [str(index) for index in range(len(predictions))]
    texts = ComparedTexts(ids, predictions, references)
    return evaluation_with(answered=lambda name: texts)


def test_the_metric():
    people = ("two",) * 8 + ("3", "four")
    found = Answers("vqa")(answered(["2", "Three", "", "blue"], [people] * 4))
    assert found["answers_vqa"].value == pytest.approx((1 + 0.3) / 4)
    assert found["answers_exact"].value == 0.5
    assert found["answers_empty"] == 1
    assert all(each.n == 4 for each in found.values() if isinstance(each, Estimate))


def test_without_four_answers_each_there_are_exact_matches_alone():
    found = Answers("vqa")(answered(["a dog", "cat"], [("Dog",), ("bird", "fish")]))
    assert found["answers_exact"].value == 0.5
    assert set(found) == {"answers_exact", "answers_empty"}


def test_a_set_without_questions_is_refused():
    with pytest.raises(UserError, match="the evaluation set 'vqa' has no questions"):
        Answers("vqa")(answered([], []))
