"""Bundles of activities, and the places of parts and objects that are read from them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from cm3leon_jax.errors import UserError
from examples.annotations import activities, activity_sets
from examples.annotations.packages import Packages
from examples.annotations.resource_bundle import read_bundle
from tests.examples import annotation_packages as packages

FILES = {"a/b/c.txt": b"one" * 30, "a/b/d.txt": b"", "a/e.svg": b"<svg/>", "f": bytes(range(256))}


@pytest.fixture
def found(tmp_path, monkeypatch) -> Packages:
    monkeypatch.setattr(activities, "rasterize", packages.rendered)
    monkeypatch.setattr(activities, "SCENE_SIDE", 170)
    packages.write_bundles(tmp_path / "usr/share/gcompris-qt/rcc")
    return Packages(tmp_path)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_bundle_has_the_files_that_were_put_into_it(tmp_path, version):
    (tmp_path / "a.rcc").write_bytes(packages.bundle(FILES, version))
    assert read_bundle(tmp_path / "a.rcc") == FILES


@pytest.mark.parametrize("content", [b"", b"PK\3\4", packages.bundle(FILES)[:150], packages.bundle(FILES)[:40]])
def test_a_damaged_bundle_is_one_line(tmp_path, content):
    (tmp_path / "a.rcc").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.rcc is no resource bundle"):
        read_bundle(tmp_path / "a.rcc")


def test_a_bundle_whose_bytes_were_changed_is_one_line_or_read(tmp_path):
    content, random = bytearray(packages.bundle(FILES)), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[random.integers(4, len(content))] = random.integers(256)
        (tmp_path / "a.rcc").write_bytes(damaged)
        try:
            read_bundle(tmp_path / "a.rcc")
        except UserError as error:
            assert "\n" not in str(error)


def test_a_bundle_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(UserError, match="unpack the package gcompris-qt-data"):
        activities.read_scenes(Packages(tmp_path))
    (tmp_path / "usr/share/gcompris-qt/rcc").mkdir(parents=True)
    with pytest.raises(UserError, match=r"photo_hunter\.rcc cannot be read"):
        activities.read_scenes(Packages(tmp_path))


def test_objects_are_where_the_game_has_them(found):
    scene = activities.read_scenes(found)[0]
    assert [(each.name, each.box) for each in scene.objects] == [
        ("sun", (17, 17, 34, 51)),
        ("lemon", (85, 85, 119, 119)),
    ]
    image = np.asarray(scene.with_objects(scene.objects[:1]).convert("RGB"))
    left, top, right, bottom = scene.objects[0].box
    assert (image[top:bottom, left:right] == (255, 0, 0)).all()
    assert (image == (255, 0, 0)).all(-1).sum() == (bottom - top) * (right - left)


def test_parts_of_paintings_are_where_their_pixels_are(found):
    shown = list(activities.read_paintings(found))
    assert len(shown) == 12
    first = next(each for each in shown if each.key == "Painting3")
    assert first.title == "A Painter, Painting3 - 1888"
    ((part, (left, top, right, bottom)),) = first.parts
    assert (left, top, right, bottom) == (15, 30, 45, 50)
    assert (np.asarray(first.image)[top:bottom, left:right] == np.asarray(part)).all()


def test_texts_of_boards_are_read_whole(found):
    described = list(activities.read_explored(found))
    assert len(described) == 20
    assert described[0].title == "Farm_Animals 1" and described[0].kind == "animal"
    assert described[0].text == 'The Farm_Animals 1 is "well" known. So it is.'


def test_categories_are_named_after_their_files(found):
    named = {(each.kind, each.title) for each in activities.read_categorized(found)}
    assert named == {
        ("tool", "hammer"),
        ("tool", "screw driver"),
        ("fish", "fish"),
        ("monument", "taj mahal"),
        ("source of energy", "windmill"),
    }


def test_a_window_is_a_square_in_the_image_around_the_box():
    image = Image.new("RGB", (100, 80))
    assert activities.square(image, (40, 40, 60, 50), 2.0) == (30, 25, 70, 65)
    assert activities.square(image, (0, 0, 10, 10), 2.0) == (0, 0, 20, 20)
    assert activities.square(image, (0, 0, 100, 80), 1.0) == (10, 0, 90, 80)


def _pixels(file):
    return np.asarray(Image.open(file))


def test_sessions_add_and_remove_an_object_and_end_where_they_began(found, tmp_path):
    folder = tmp_path / "scene_edits"
    activity_sets.write_scene_edits(activities.read_scenes(found)[:1], "train", folder)
    turns = json.loads((folder / "train" / "edit_turns.json").read_text())
    assert len(turns) >= 4 and len(turns) % 2 == 0
    for first, second in zip(turns[::2], turns[1::2], strict=True):
        images = folder / "train" / "images" / first["input"].partition("-")[0]
        assert first["output"] == second["input"]
        start, changed, end = (_pixels(images / name) for name in (first["input"], first["output"], second["output"]))
        assert (start == end).all() and (start != changed).any()
        # What changes is in the mask.
        inside = _pixels(images / first["mask"])[..., 0] > 0
        assert not (start != changed).any(-1)[~inside].any()
        is_added = any(word in first["instruction"] for word in ("add", "put", "there should be"))
        shown = changed if is_added else start
        assert "sun" in first["instruction"] or "lemon" in first["instruction"]
        assert ((shown == (255, 0, 0)).all(-1) | (shown == (255, 255, 0)).all(-1)).any()


def test_grounded_scenes_have_phrases_at_their_boxes(found, tmp_path):
    import pyarrow.parquet as pq

    activity_sets.write_scene_grit(activities.read_scenes(found)[:1], "train", tmp_path)
    rows = pq.read_table(tmp_path / "train" / "00000.parquet").to_pylist()
    assert [each["caption"] for each in rows] == [
        "An image with a sun and a lemon",
        "An image with a lemon",
        "An image with a sun",
    ]
    colors = {"a sun": (255, 0, 0), "a lemon": (255, 255, 0)}
    for row in rows:
        image = _pixels(tmp_path / "train" / "00000" / f"{row['key']}.png")
        for start, end, *box, _ in row["ref_exps"]:
            left, top, right, bottom = (round(bound * len(image)) for bound in box)
            color = image[(top + bottom) // 2, (left + right) // 2]
            assert tuple(color) == colors[row["caption"][int(start) : int(end)]]


def test_restored_parts_differ_in_the_mask_alone(found, tmp_path):
    import pyarrow.parquet as pq

    activity_sets.write_restored(list(activities.read_paintings(found)), "train", tmp_path)
    rows = pq.read_table(tmp_path / "data" / "train-00000-of-00001.parquet").to_pylist()
    assert len(rows) == 12
    source, target, mask = (
        _pixels(io.BytesIO(rows[0][name]["bytes"])) for name in ("source_image", "edited_image", "mask_image")
    )
    changed = (source != target).any(-1)
    assert changed.any() and not changed[mask[..., 0] == 0].any()


def test_every_answer_to_a_problem_is_one_of_its_choices(found, tmp_path):
    explored, categorized = list(activities.read_explored(found)), list(activities.read_categorized(found))
    activity_sets.write_problems(explored, categorized, tmp_path)
    problems = json.loads((tmp_path / "problems.json").read_text())
    assert len(problems) == len(explored) + len(categorized)
    for each, problem in zip([*explored, *categorized], problems.values(), strict=True):
        assert problem["choices"][problem["answer"]] in (each.title, each.kind)
        assert len(set(problem["choices"])) == len(problem["choices"]) == 4
