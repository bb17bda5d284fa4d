"""Questions about scenes: right answers, and none much more frequent than others."""

import re

import pytest

from cm3leon_jax.errors import UserError
from examples.scenes.pictures import Scene, SceneConfig, SceneObject, sample
from examples.scenes.questions import QUESTIONS, Question, majorities, sample_question, sample_questions
from examples.scenes.texts import NUMBERS, kinds_in, position

CONFIG = SceneConfig()
SCENES = [sample(CONFIG, "train", 0, index) for index in range(1500)]
ASKED = [sample_questions(CONFIG, scene, 1, index, 6) for index, scene in enumerate(SCENES)]
BOXES = Scene("pink", "green", (SceneObject(0, 0, "panda"), SceneObject(3, 0, "rose")))


def check(scene: Scene, question: Question) -> bool:
    """Whether the answer is right, found from the words of the question."""
    kinds = list(kinds_in(question.text))
    if question.type == "leftmost":
        (columns,) = [{each.kind: each.column for each in scene.objects}]
        assert set(kinds) == set(question.choices)
        return question.answer == min(kinds, key=columns.__getitem__)
    return (
        question.answer
        == {
            "sky_color": lambda: scene.sky,
            "ground_color": lambda: scene.ground,
            "num_objects": lambda: NUMBERS[len(scene.objects)],
            "num_of_kind": lambda: NUMBERS[scene.counts[kinds[0]]],
            "presence": lambda: "yes" if kinds[0] in scene.counts else "no",
            "location": lambda: {each.kind: position(each) for each in scene.objects}[kinds[0]],
        }[question.type]()
    )


def test_answers_are_right():
    for scene, questions in zip(SCENES, ASKED, strict=True):
        assert len({each.text for each in questions}) == len(questions) >= 4
        for each in questions:
            assert check(scene, each), (scene, each)


def test_held_out_wordings_have_the_same_answers():
    for index, scene in enumerate(SCENES[:100]):
        for seen, held_out in zip(
            ASKED[index], sample_questions(CONFIG, scene, 1, index, 6, held_out=True), strict=True
        ):
            assert (seen.type, seen.answer, seen.choices) == (held_out.type, held_out.answer, held_out.choices)
            assert seen.text != held_out.text


def test_no_answer_is_much_more_frequent_than_others():
    found = majorities([each for questions in ASKED for each in questions])
    most = {
        "sky_color": 0.25,
        "ground_color": 0.4,
        "num_objects": 0.3,
        "num_of_kind": 0.5,
        "presence": 0.6,
        "location": 0.2,
        "leftmost": 0.55,
    }
    assert set(found) == set(most) == set(QUESTIONS)
    assert {type: value for type, value in found.items() if value > most[type]} == {}


@pytest.mark.parametrize("number", [1, 3, 50])
def test_as_many_different_questions_as_are_asked_for_or_a_scene_has(number):
    for scene in SCENES[:50]:
        found = sample_questions(CONFIG, scene, 7, 0, number)
        assert len({(each.type, each.text) for each in found}) == len(found) <= number
        assert len(found) == number or number == 50


def test_questions_follow_from_seed_and_index():
    assert ASKED[5] == sample_questions(CONFIG, SCENES[5], 1, 5, 6)
    assert {each.text for each in ASKED[5]} != {each.text for each in sample_questions(CONFIG, SCENES[5], 2, 5, 6)}


def test_a_type_can_be_asked_for():
    question = sample_question(CONFIG, SCENES[0], 0, 0, type="num_objects")
    assert question.type == "num_objects" and re.search("number of objects|how many objects", question.text)


@pytest.mark.parametrize(
    ("type", "message"),
    [("leftmost", "the question leftmost: no object of this scene"), ("size", "no question 'size': one of sky_color")],
)
def test_what_cannot_be_asked_is_said_in_one_line(type, message):
    with pytest.raises(UserError, match=message):
        sample_question(CONFIG, BOXES, 0, 0, type=type)
