"""Emoji: what belongs together, which edits there are, and how a result is judged."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cm3leon_jax.errors import UserError
from examples.annotations import emoji_images, emoji_sets
from examples.annotations.areas import ColorAreas
from examples.annotations.emoji_images import TONES, Emoji, EmojiImages, read_emoji
from examples.annotations.nearest import NearestEdits, nearest
from examples.annotations.packages import Packages
from examples.annotations.published import is_held_out
from tests.evaluation.contexts import evaluation_with
from tests.examples import annotation_packages as packages


@pytest.fixture
def found(tmp_path, monkeypatch) -> Packages:
    monkeypatch.setattr(emoji_images, "rasterize", packages.rendered)
    packages.write_emoji(tmp_path, ("1F44B", "1F44D"), ("1F436", "1F431"))
    return Packages(tmp_path)


@pytest.fixture
def emoji(found) -> list[Emoji]:
    return read_emoji(found.openmoji / "data" / "openmoji.csv")


@pytest.mark.parametrize(
    "codes",
    [
        ("1F44B", "1F44B-1F3FB", "1F44B-1F3FF"),
        ("1F468-200D-1F692", "1F469-1F3FC-200D-1F692", "1F9D1-200D-1F692"),
        ("1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-1F3FD-200D-2642-FE0F-200D-27A1-FE0F"),
    ],
)
def test_variants_of_an_emoji_belong_together(codes):
    assert len({Emoji(code, "", "", None, "").family for code in codes}) == 1


def test_different_emoji_do_not():
    codes = ("1F44B", "1F44D", "1F468-200D-1F692", "1F468-200D-1F373", "1F468", "1F3FB")
    assert len({Emoji(code, "", "", None, "").family for code in codes}) == len(codes)


def test_emoji_are_read_with_their_tones(emoji):
    assert len(emoji) == 2 * len(TONES) + 2
    assert {each.tone for each in emoji if each.base == "1F44B"} == set(TONES.values())
    dark = next(each for each in emoji if each.code == "1F44B-1F3FF")
    assert (dark.tone, dark.plain_name, dark.family) == ("dark", "waving 1F44B", "1F44B")
    assert next(each for each in emoji if each.code == "1F436").tone is None


def test_another_table_is_one_line(tmp_path):
    (tmp_path / "openmoji.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"is no openmoji\.csv that can be read"):
        read_emoji(tmp_path / "openmoji.csv")


def test_files_are_found_with_and_without_variation_selectors(found, emoji):
    images = EmojiImages(found)
    assert all(images.has(each, *emoji_images.STYLES) for each in emoji)
    assert Image.open(io.BytesIO(images.image(emoji[0], "fluent"))).size == (64, 64)


def _pixel(cell):
    return tuple(np.asarray(Image.open(io.BytesIO(cell["bytes"])))[0, 0].tolist())


def test_an_edit_of_the_tone_ends_in_the_tone_it_asks_for(found, emoji, tmp_path):
    images = EmojiImages(found)
    emoji_sets.write_tones(emoji, images, "val", tmp_path)
    rows = pq.read_table(tmp_path / "tones/data/val-00000-of-00001.parquet").to_pylist()
    assert len(rows) == 2 * 10
    by_name = {each.name: each for each in emoji}
    for row in rows:
        before, after = by_name[row["original_prompt"]], by_name[row["edited_prompt"]]
        assert before.base == after.base and row["edit_prompt"].replace("skin tone", "").strip().find(after.tone) >= 0
        assert _pixel(row["edited_image"]) == _pixel({"bytes": images.image(after, "google")})
        assert _pixel(row["original_image"]) == _pixel({"bytes": images.image(before, "google")})
    requests, alternatives = (
        [json.loads(line) for line in (tmp_path / "held_out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("tones", "tones_alternatives")
    )
    assert len(requests) == len(rows)
    for request, line in zip(requests, alternatives, strict=True):
        assert request["id"] == line["id"] and set(line["images"]) == set(TONES.values())
        assert request["image"] == line["images"][line["before"]] and request["target"] == line["images"][line["after"]]
        assert all((tmp_path / "held_out" / name).is_file() for name in line["images"].values())


def test_a_session_goes_on_from_what_it_made(found, emoji, tmp_path):
    emoji_sets.write_tone_sessions(emoji, EmojiImages(found), "train", tmp_path)
    rows = pq.read_table(tmp_path / "data" / "train-00000-of-00001.parquet").to_pylist()
    assert [each["turn_index"] for each in rows] == [1, 2, 1, 2]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["img_id"] == second["img_id"]
        assert first["target_img"]["bytes"] == second["source_img"]["bytes"]
        mask = np.asarray(Image.open(io.BytesIO(first["mask_img"]["bytes"])))
        assert (mask[..., 3] == 0).all()


def test_lines_and_styles_change_nothing_but_what_they_say(found, emoji, tmp_path):
    images = EmojiImages(found)
    emoji_sets.write_lines(emoji, images, "train", tmp_path)
    emoji_sets.write_styles(emoji, images, "val", tmp_path)
    lines = pq.read_table(tmp_path / "lines/data/train-00000-of-00001.parquet").to_pylist()
    # Once for all tones of a person, whose lines are the same.
    assert len(lines) == 4
    for row in lines:
        is_drawing = "line" in row["edit_prompt"] and "fill" not in row["edit_prompt"]
        assert (_pixel(row["edited_image"]) == (16, 16, 16)) == is_drawing
    styles = pq.read_table(tmp_path / "styles/data/dev-00000-of-00001.parquet").to_pylist()
    assert len(styles) == len(emoji) and all(len(set(row["edited_prompt_list"])) == 3 for row in styles)


def test_questions_come_in_any_order_with_the_image_first(found, emoji, tmp_path):
    emoji_sets.write_emoji_questions(emoji, EmojiImages(found), "val", tmp_path)
    rows = pq.read_table(tmp_path / "emoji_questions/data/val-00000-of-00001.parquet").to_pylist()
    by_code = {each.file_stem: each for each in emoji}
    first = set()
    for row in rows:
        turns = [turn["value"] for turn in row["conversations"]]
        assert turns[0].startswith("<image>\n") and "<image>" not in turns[2]
        answers = dict(zip((turns[0].removeprefix("<image>\n"), turns[2]), turns[1::2], strict=True))
        assert answers["What is it?"] == by_code[row["id"]].plain_name
        assert answers.get("Which skin tone does it have?", by_code[row["id"]].tone) == by_code[row["id"]].tone
        first.add(turns[0])
    assert len(first) > 1


def test_what_belongs_together_is_on_one_side(found, emoji):
    sides = {each.family: set() for each in emoji}
    for each in emoji:
        sides[each.family].add(is_held_out(each.family))
    assert all(len(side) == 1 for side in sides.values())


def test_the_nearest_image_is_named():
    images = {name: np.full((4, 4, 3), value, np.uint8) for name, value in (("a", 0), ("b", 100), ("c", 200))}
    assert [nearest(np.full((4, 4, 3), value, np.uint8), images) for value in (10, 60, 255)] == ["a", "b", "c"]


def _evaluation(values, ids):
    images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in values])
    tokenizer = SimpleNamespace(
        config=SimpleNamespace(resolution=4, in_channels=3), encode=lambda x: x, decode=lambda x: x // 110 * 110
    )
    model = SimpleNamespace(image_tokenizer=tokenizer)
    return evaluation_with(model=model, edited=lambda name: SimpleNamespace(ids=ids, edited=images))


def _alternatives(folder, **changes):
    for name, value in (("light", 60), ("medium", 100), ("dark", 220)):
        packages.write(folder / f"{name}.png", packages.encoded(packages.plain((value,) * 3, 4, 4)))
    images = {name: f"{name}.png" for name in ("light", "medium", "dark")}
    lines = [
        {"id": name, "group": "hand", "images": images, "before": "light", "after": after} | changes
        for name, after in (("1", "dark"), ("2", "medium"), ("3", "medium"))
    ]
    (folder / "alternatives.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return str(folder / "alternatives.jsonl")


def test_edits_are_right_if_nearest_to_their_targets(tmp_path):
    metric = NearestEdits("tones", _alternatives(tmp_path))
    found = metric(_evaluation([200, 110, 60], ["1", "2", "3"]))
    assert found["edits_right"].value == pytest.approx(2 / 3) and found["edits_as_before"].value == pytest.approx(1 / 3)
    # The stand-in of an image tokenizer keeps two levels: dark is told apart, medium is not.
    assert found["edits_right_of_targets"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": "green"}, "line 1: after is none of the images"),
        ({"images": []}, "has no field images of the published form"),
        ({"images": {"light": "light.png", "medium": "no.png", "dark": "dark.png"}}, r"no\.png of .* cannot be read"),
    ],
)
def test_broken_alternatives_are_one_line(tmp_path, changes, message):
    metric = NearestEdits("tones", _alternatives(tmp_path, **changes))
    with pytest.raises(UserError, match=message):
        metric(_evaluation([200], ["1"]))


def test_an_edit_without_a_line_is_one_line(tmp_path):
    with pytest.raises(UserError, match="has no line of the edit 7"):
        NearestEdits("tones", _alternatives(tmp_path))(_evaluation([200], ["7"]))


def test_regions_are_detected_by_their_colors():
    image = np.full((32, 32, 3), (225, 225, 225), np.uint8)
    image[2:12, 4:20], image[2:5, 24:30] = (255, 0, 0), (255, 0, 0)
    image[20:30, 8:18] = (0, 0, 255)
    # Too small to be part of a region.
    image[31, 31] = (0, 0, 255)
    (found,) = ColorAreas()(image[None])
    assert [(each.name, each.box) for each in found] == [
        ("red region", (4.0, 2.0, 30.0, 12.0)),
        ("blue region", (8.0, 20.0, 18.0, 30.0)),
    ]
    assert ColorAreas()(np.full((1, 32, 32, 3), 225, np.uint8)) == [[]]
