"""The captions metric, on texts that a model might have written."""

import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.captions import Captions, object_recalls
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.set_results import ComparedTexts
from tests.evaluation.contexts import evaluation_with

REFERENCES = [
    ("A man rides a horse.", "a man on a brown horse"),
    ("Two dogs play in the snow.",),
    ("A plate of pizza on a table.", "Pizza, sliced."),
    ("A red bus in the street.", "the bus is red"),
]


def captioned(predictions: list[str], references: list[tuple[str, ...]] = REFERENCES) -> EvaluationContext:
    ids = [f"image{index}" for index in range(len(predictions))]
    texts = ComparedTexts(ids, predictions, references)
    return evaluation_with(captioned=lambda name: texts)


def test_what_people_wrote_scores_best_and_an_empty_caption_nothing():
    right = Captions()(captioned([of_image[0] for of_image in REFERENCES]))
    wrong = Captions()(captioned([of_image[0] for of_image in REFERENCES[1:] + REFERENCES[:1]]))
    empty = Captions()(captioned(["", ".", " ", "..."]))
    for name in ("cider", "rouge", "exact", "bleu1", "bleu2", "bleu3", "bleu4"):
        of_right, of_wrong, of_empty = (found[f"captions_{name}"] for found in (right, wrong, empty))
        assert of_right.value > of_wrong.value >= of_empty.value == 0
        assert of_right.n == 4 and of_right.low <= of_right.value <= of_right.high
    assert right["captions_exact"].value == right["captions_rouge"].value == 1
    assert right["captions_bleu4"].value == pytest.approx(1)
    assert right["captions_empty"] == 0 and empty["captions_empty"] == 4


def test_case_and_punctuation_do_not_count():
    found = Captions()(
        captioned(["a MAN rides a horse!", "two dogs play in the snow", '"pizza" - sliced', "The bus is red"])
    )
    assert found["captions_exact"].value == 1


def test_object_recall():
    found = Captions(names=("horse|horses", "dog|dogs", "table", "wine glass"))(
        captioned(["a horse and a dog", "a puppy", "a table", "a bus"])
    )
    # The last has none of the names in its references.
    assert found["captions_object_recall"].value == pytest.approx(2 / 3)
    assert found["captions_object_recall"].n == 3


def test_names_of_several_words_are_found_whole():
    assert object_recalls([["a", "wine", "glass"]], [[["the", "wine", "glass"]]], ["wine glass"]) == [1]
    assert object_recalls([["glass", "of", "wine"]], [[["the", "wine", "glass"]]], ["wine glass"]) == [0]


@pytest.mark.parametrize(
    ("metric", "evaluation", "message"),
    [
        (Captions("coco"), captioned([]), "the evaluation set 'coco' has no images to caption"),
        (Captions("coco"), captioned(["a"], [("...",)]), "the image image0 of 'coco' has no reference with a word"),
        (Captions(names=("cow",)), captioned(["a"] * 4), "no reference has any of its names"),
    ],
)
def test_what_cannot_be_scored_is_one_line(metric, evaluation, message):
    with pytest.raises(UserError, match=message):
        metric(evaluation)


def test_all_but_counts_are_estimates():
    found = Captions()(captioned([of_image[0] for of_image in REFERENCES]))
    assert {name for name, value in found.items() if not isinstance(value, Estimate)} == {"captions_empty"}
