"""Texts of scenes: captions that are read back, boxes, wordings."""

import re

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from examples.scenes import edits, questions, texts
from examples.scenes.pictures import KINDS, Scene, SceneConfig, SceneObject, sample

CONFIG = SceneConfig(len(KINDS))
SCENES = [sample(CONFIG, "train", 0, index) for index in range(200)]
SCENE = Scene(
    "orange",
    "yellow",
    (SceneObject(0, 3, "avocado"), SceneObject(3, 5, "box"), SceneObject(5, 0, "box")),
)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("form", texts.CAPTIONS)
def test_captions_name_exactly_the_objects_and_the_sky(form, held_out):
    for number, scene in enumerate(SCENES):
        caption = texts.caption(scene, form, number, held_out)
        assert texts.kinds_in(caption) == scene.counts
        assert texts.sky_in(caption) == scene.sky
        assert texts.ground_in(caption) == (scene.ground if form == "long" else None)


def test_captions_read_as_english():
    assert texts.caption(SCENE, "short", 0) == "an avocado and two boxes under an orange sky"
    assert texts.caption(SCENE, "long", 0) == (
        "the sky is orange and the ground is yellow. there is an avocado at the top, a box on the right and a box at "
        "the bottom left"
    )


@pytest.mark.parametrize(
    ("caption", "kinds"),
    [
        ("", {}),
        ("nothing under a pink sky", {}),
        ("a panda and a panda", {"panda": 2}),
        ("three foxes, zero roses", {"fox": 3}),
        ("strawberries", {"strawberry": 1}),
        ("a trainer", {}),
    ],
)
def test_kinds_are_counted_as_named(caption, kinds):
    assert texts.kinds_in(caption) == kinds


def test_a_caption_of_two_skies_has_none():
    assert texts.sky_in("a pink sky and a gray sky") is None
    assert texts.sky_in("the sky is pink, a pink sky") == "pink"


def test_boxes_are_in_pixels_and_in_the_order_asked_for():
    by_rows = "avocado at location (12, 0) -> (24, 12), box at location (20, 12) -> (32, 24), "
    assert texts.located(SCENE) == by_rows + "box at location (0, 20) -> (12, 32)"
    for order, axis in (("raster", 1), ("left_to_right", 0)):
        for scene in SCENES:
            corners = [
                list(map(int, found)) for found in re.findall(r"\((\d+), (\d+)\) ->", texts.located(scene, order))
            ]
            assert [corner[axis] for corner in corners] == sorted(corner[axis] for corner in corners)
            assert len(corners) == len(scene.objects)


def test_no_two_objects_of_a_scene_are_at_one_position_in_words():
    for scene in SCENES:
        assert len({texts.position(each) for each in scene.objects}) == len(scene.objects)


def test_held_out_wordings_are_new_sentences_of_known_words():
    families = {**texts.CAPTIONS, **questions.QUESTIONS, **edits.EDITS}
    known = {word for each in families.values() for text in each.seen for word in re.findall(r"[a-z]+", text)}
    for name, each in families.items():
        assert not set(each.seen) & set(each.held_out), name
        assert len(each.seen) >= 3 and len(each.held_out) >= 2, name
        for text in each.held_out:
            assert set(re.findall(r"[a-z]+", text)) <= known, text
        # A color is named with its article or without.
        fields = {frozenset(re.findall(r"{(?:a_(?=sky|ground))?(\w+)}", text)) for text in (*each.seen, *each.held_out)}
        assert len(fields) == 1, name


def test_every_wording_is_said():
    said = {texts.caption(SCENE, "long", number) for number in range(20)}
    assert len(said) == len(texts.CAPTIONS["long"].seen)
    assert not said & {texts.caption(SCENE, "long", number, held_out=True) for number in range(20)}


def test_unknown_forms_and_orders_are_said_in_one_line():
    with pytest.raises(UserError, match="no caption 'tiny': one of short, long"):
        texts.caption(SCENE, "tiny", 0)
    with pytest.raises(UserError, match="no order 'random': one of raster, left_to_right"):
        texts.located(SCENE, "random")


def test_numbers_of_numpy_choose_wordings():
    assert texts.caption(SCENE, "short", np.uint64(2**63)) in {texts.caption(SCENE, "short", n) for n in range(5)}
