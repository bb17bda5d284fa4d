"""Scenes: sampling, splits and renderings."""

from collections import Counter

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from examples.scenes import pictures
from examples.scenes.pictures import Scene, SceneConfig, SceneObject, render, sample, split_of
from tests.examples.fonts import needs_font

CONFIG = SceneConfig()
PANDA, ROSE = SceneObject(0, 0, "panda"), SceneObject(3, 2, "rose")


@pytest.mark.parametrize("split", pictures.SPLITS)
def test_scenes_follow_from_split_seed_and_index(split):
    scenes = [sample(CONFIG, split, 1, index) for index in range(50)]
    assert scenes == [sample(CONFIG, split, 1, index) for index in range(50)]
    assert len(set(scenes)) > 45
    assert scenes != [sample(CONFIG, split, 2, index) for index in range(50)]
    assert {split_of(scene) for scene in scenes} == {split}


def test_the_first_kinds_are_the_same_whatever_their_number():
    assert SceneConfig(24).kinds[:16] == SceneConfig(16).kinds


def test_scenes_have_all_numbers_of_objects_alike_and_every_kind():
    scenes = [sample(CONFIG, "train", 0, index) for index in range(1000)]
    numbers = Counter(len(scene.objects) for scene in scenes)
    assert set(numbers) == {1, 2, 3, 4} and min(numbers.values()) > 200
    kinds = Counter(each.kind for scene in scenes for each in scene.objects)
    assert set(kinds) == set(CONFIG.kinds) and min(kinds.values()) > 60
    assert {len(sample(SceneConfig(most_objects=2), "train", 0, index).objects) for index in range(50)} == {1, 2}


def test_a_tenth_of_the_combinations_is_held_out_whatever_the_positions():
    combinations: dict[tuple, set] = {}
    for index in range(2000):
        scene = pictures.sample_any(CONFIG, 3, np.random.default_rng(index))
        if split_of(scene) != "new_pairs":
            names = (scene.sky, *sorted(each.kind for each in scene.objects))
            combinations.setdefault(names, set()).add(split_of(scene))
    assert all(len(splits) == 1 for splits in combinations.values())
    held_out = sum(splits == {"validation"} for splits in combinations.values()) / len(combinations)
    assert 0.08 < held_out < 0.12


def test_new_pairs_are_of_every_fourth_kind_and_never_seen_in_training():
    pairs = {kind: pictures.new_sky(kind) for kind in CONFIG.kinds if pictures.new_sky(kind)}
    assert len(pairs) == len(CONFIG.kinds) // 4 == len(set(pairs.values()))
    for index in range(500):
        scene = sample(CONFIG, "train", 0, index)
        assert all(pairs.get(each.kind) != scene.sky for each in scene.objects)
    kind, sky = next(iter(pairs.items()))
    assert split_of(Scene(sky, "green", (ROSE, SceneObject(0, 0, kind)))) == "new_pairs"


def test_objects_are_row_by_row_whatever_the_order_they_are_given_in():
    later = SceneObject(0, 5, "ball")
    assert Scene("pink", "green", (ROSE, later, PANDA)).objects == (PANDA, later, ROSE)


@needs_font
def test_renderings_are_the_same_every_time():
    scene = sample(CONFIG, "train", 0, 3)
    pictures.glyph.cache_clear()
    first = render(scene)
    pictures.glyph.cache_clear()
    np.testing.assert_array_equal(first, render(scene))
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8


@needs_font
@pytest.mark.parametrize("kind", pictures.KINDS)
def test_an_object_fills_its_box_and_no_pixel_outside(kind):
    each = SceneObject(3, 2, kind)
    scene = Scene("pink", "green", (each,))
    changed = np.any(render(scene) != render(Scene("pink", "green", ())), axis=-1)
    left, top, right, bottom = each.box
    assert (right - left, bottom - top) == (12, 12)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert top <= rows[0] and rows[-1] < bottom and left <= columns[0] and columns[-1] < right
    # The longer side is that of the box, and a fifth of the box at least is the object.
    assert max(np.ptp(rows), np.ptp(columns)) == 11
    assert changed[top:bottom, left:right].mean() > 0.2


@needs_font
def test_sky_and_ground_have_their_colors():
    image = render(Scene("dark blue", "yellow", ()))
    assert np.all(image[:20] == pictures.SKIES["dark blue"]) and np.all(image[20:] == pictures.GROUNDS["yellow"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SceneConfig(num_kinds=4), r"num_kinds is 4: 5 to 40 kinds"),
        (lambda: SceneConfig(num_kinds=41), r"num_kinds is 41"),
        (lambda: SceneConfig(most_objects=5), r"most_objects is 5: 1 to 4"),
        (lambda: sample(CONFIG, "test", 0, 0), r"no split 'test': one of train, validation, new_pairs"),
        (lambda: SceneObject(0, 6, "panda"), r"the panda at row 0, column 6 is not inside the image: 0 to 5"),
        (lambda: SceneObject(0, 0, "unicorn"), r"no emoji for 'unicorn'"),
        (lambda: Scene("red", "green", ()), r"the sky is 'red': one of bright blue"),
        (lambda: Scene("pink", "pink", ()), r"the ground is 'pink'"),
        (
            lambda: Scene("pink", "green", (PANDA, SceneObject(2, 2, "rose"))),
            r"the panda at .* rose .* overlap",
        ),
    ],
)
def test_what_is_no_scene_is_said_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_font_without_an_emoji_is_said(monkeypatch):
    pictures.glyph.cache_clear()
    monkeypatch.setattr(pictures, "_font", lambda: None)
    monkeypatch.setattr(pictures.emoji, "glyph", lambda font, characters: None)
    monkeypatch.setattr(pictures.emoji, "font_file", lambda: "old.ttf")
    with pytest.raises(UserError, match=r"old.ttf has no emoji for 'panda'"):
        pictures.glyph("panda")
