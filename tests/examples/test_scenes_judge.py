"""The judge of scenes: it reads originals, also with noise and blurred, and scores what it read."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from examples.scenes import judge
from examples.scenes.edits import EDITS, sample_edit
from examples.scenes.pictures import KINDS, SPLITS, Scene, SceneConfig, SceneObject, render, sample
from examples.scenes.questions import Question, sample_questions
from tests.examples.fonts import needs_font

CONFIG = SceneConfig()
SCENE = Scene("pink", "green", (SceneObject(0, 0, "panda"), SceneObject(0, 4, "rose"), SceneObject(4, 1, "rose")))


def images(scenes):
    return np.stack([render(scene) for scene in scenes])


def fraction_read(config, scenes, pixels):
    found = judge.read(config, np.clip(pixels, 0, 255).astype(np.uint8))
    return np.mean([scene == other for scene, other in zip(scenes, found, strict=True)])


@needs_font
@pytest.mark.parametrize("num_kinds", [16, 24, len(KINDS)])
@pytest.mark.parametrize("split", SPLITS)
def test_originals_are_read_without_a_mistake(split, num_kinds):
    config = SceneConfig(num_kinds)
    scenes = [sample(config, split, 1, index) for index in range(200)]
    originals = images(scenes).astype(np.float32)
    assert fraction_read(config, scenes, originals) == 1
    noise = np.random.default_rng(0).normal(size=originals.shape)
    assert fraction_read(config, scenes, originals + 20 * noise) >= 0.99
    assert fraction_read(config, scenes, originals + 40 * noise) >= 0.97


@needs_font
def test_blurred_scenes_are_read():
    scenes = [sample(CONFIG, "train", 2, index) for index in range(200)]
    blurred = ndimage.gaussian_filter(images(scenes).astype(np.float32), (0, 1, 1, 0))
    assert fraction_read(CONFIG, scenes, blurred) >= 0.97


@needs_font
def test_scenes_without_objects_are_read_as_such():
    scenes = [Scene("gray", "brown", ()), Scene("dark blue", "yellow", ())]
    assert judge.read(CONFIG, images(scenes)) == scenes
    assert judge.read(CONFIG, np.zeros((0, 32, 32, 3), np.uint8)) == []


@needs_font
def test_an_object_that_reaches_into_two_others_is_not_read_for_both():
    # Two books one above the other are also much like one book between them.
    scene = Scene("purple", "brown", (SceneObject(0, 0, "book"), SceneObject(3, 0, "book"), SceneObject(4, 3, "rose")))
    assert judge.read(CONFIG, images([scene])) == [scene]


def values(found):
    return {name: getattr(value, "value", value) for name, value in found.items()}


def test_images_that_show_what_was_asked_for_have_all_points():
    found = judge.score_images([SCENE, SCENE], [SCENE, SCENE])
    assert set(values(found).values()) == {1.0}
    assert (found["objects_at_position"].n, found["scenes_whole"].n) == (6, 2)


def test_images_are_scored_by_objects_and_by_scenes():
    # A rose a cell off is in its box; another two cells off is not; a shell is none of those asked for.
    near, far = SceneObject(0, 3, "rose"), SceneObject(4, 3, "rose")
    objects = (near, far, SceneObject(4, 0, "shell"))
    found = values(judge.score_images([SCENE], [Scene("pink", "brown", objects)]))
    assert found == {
        "objects_at_position": 0,
        "objects_in_box": pytest.approx(1 / 3),
        "objects_present": pytest.approx(2 / 3),
        "scenes_with_kinds": 0,
        "scenes_with_sky": 1,
        "scenes_with_ground": 0,
        "scenes_whole": 0,
    }


def test_edits_are_whole_kept_or_not_made():
    edits = [sample_edit(CONFIG, "train", 0, index, type) for type in EDITS for index in range(5)]
    done = values(judge.score_edits(edits, [edit.after for edit in edits]))
    assert done.pop("edits_unedited") == 0
    assert set(done.values()) == {1.0} and len(done) == 2 * len(EDITS)
    undone = values(judge.score_edits(edits, [edit.before for edit in edits]))
    assert undone["edits_unedited"] == 1
    assert all(undone[f"{type}_whole"] == 0 and undone[f"{type}_kept"] == 1 for type in EDITS)
    empty = values(judge.score_edits(edits, [replace(edit.after, objects=()) for edit in edits]))
    assert empty["sky_whole"] == empty["sky_kept"] == 0


def test_an_edit_that_changes_the_ground_keeps_nothing():
    edit = sample_edit(CONFIG, "train", 0, 0, "add")
    other = "brown" if edit.after.ground != "brown" else "green"
    assert judge.keeps(edit, edit.after) and not judge.keeps(edit, replace(edit.after, ground=other))


def test_answers_are_scored_by_type_beside_the_majority():
    scenes = [sample(CONFIG, "train", 0, index) for index in range(50)]
    questions = [each for index, scene in enumerate(scenes) for each in sample_questions(CONFIG, scene, 0, index, 6)]
    right = judge.score_answers(questions, [f" {each.answer.capitalize()}." for each in questions])
    assert values(right)["question_accuracy"] == 1
    always = judge.score_answers(questions, ["yes"] * len(questions))
    truth = [each.answer == "yes" for each in questions if each.type == "presence"]
    assert values(always)["presence_accuracy"] == pytest.approx(np.mean(truth))
    assert values(always)["presence_majority"] >= values(always)["presence_accuracy"]
    assert values(always)["sky_color_accuracy"] == 0


def test_the_majority_of_a_choice_is_that_of_the_first_or_the_second():
    questions = [Question("leftmost", "", "a", ("a", "b")), Question("leftmost", "", "c", ("c", "d"))]
    assert values(judge.score_answers(questions, ["b", "d"])) == {
        "question_accuracy": 0,
        "leftmost_accuracy": 0,
        "leftmost_majority": 1,
    }


def test_captions_are_right_where_they_name_exactly_the_objects():
    texts = [
        "a panda and two roses under a pink sky",
        "a panda and a rose. the sky is pink",
        "a gray sky, green ground",
    ]
    found = values(judge.score_captions([SCENE] * 3, texts))
    assert found == {
        "captions_with_kinds": pytest.approx(1 / 3),
        "captions_with_sky": pytest.approx(2 / 3),
        "captions_with_ground": pytest.approx(1 / 3),
    }
