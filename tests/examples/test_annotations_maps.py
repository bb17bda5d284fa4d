"""Annotations of maps: every box, mask, caption and answer is that of the pixels."""

import json

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from examples.annotations import map_texts
from examples.annotations.colors import COLORS, color_fractions, color_name, name_colors
from examples.annotations.flag_sets import questions as flag_questions
from examples.annotations.map_sets import write_coco, write_grit, write_object_prompts, write_questions
from examples.annotations.maps import View, Visible, read_map, read_maps, rectangles, views
from tests.examples import annotation_packages as packages


@pytest.fixture
def found_map(tmp_path):
    packages.write_map(tmp_path, "chile")
    return read_map(tmp_path / "chile.kgm")


@pytest.fixture
def whole(found_map) -> View:
    """The whole of the map of `map_pixels`."""
    return next(each for each in views(found_map, margin=9) if each.about.name == "Upper")


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((255, 0, 0), "red"),
        ((255, 128, 0), "orange"),
        ((255, 240, 60), "yellow"),
        ((0, 128, 0), "green"),
        ((0, 255, 255), "cyan"),
        ((40, 60, 255), "blue"),
        ((130, 0, 255), "purple"),
        ((255, 60, 200), "pink"),
        ((0, 0, 0), "black"),
        ((128, 128, 128), "gray"),
        ((255, 255, 255), "white"),
        # Between red and pink, orange and brown, gray and white, green and yellow.
        ((240, 130, 130), None),
        ((150, 80, 0), None),
        ((225, 225, 225), None),
        ((180, 255, 0), None),
    ],
)
def test_a_color_has_a_name_where_nobody_would_doubt_it(color, name):
    assert color_name(color) == name


def test_pixels_are_named_as_single_colors_are():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    named = name_colors(pixels)
    for found, color in zip(named.ravel(), pixels.reshape(-1, 3), strict=True):
        assert (None if found < 0 else COLORS[found]) == color_name(tuple(color.tolist()))
    assert sum(color_fractions(pixels).values()) == pytest.approx(np.mean(named >= 0))


def test_a_map_is_read_with_its_regions(found_map):
    assert (found_map.name, found_map.divisions, found_map.country) == ("Chile", "Provinces", "chile")
    assert [each.name for each in found_map.regions] == list(packages.COLORS)
    assert found_map.regions[0].capital == "Upper City"


@pytest.mark.parametrize(
    ("key", "country"),
    [("spain_provinces", "spain"), ("spain", "spain"), ("italyprovince", "italy"), ("republic_of_ireland", "ireland")],
)
def test_maps_of_a_country_belong_together(tmp_path, key, country):
    packages.write_map(tmp_path, key)
    assert read_map(tmp_path / f"{key}.kgm").country == country


@pytest.mark.parametrize("damage", ["image", "xml", "color", "none"])
def test_a_damaged_map_is_one_line(tmp_path, damage):
    packages.write_map(tmp_path, "chile")
    if damage == "image":
        (tmp_path / "chile.png").write_bytes(b"no image")
    elif damage == "none":
        (tmp_path / "chile.kgm").unlink()
    else:
        text = (tmp_path / "chile.kgm").read_text()
        (tmp_path / "chile.kgm").write_text(text[:-9] if damage == "xml" else text.replace("<red>255", "<red>much"))
    with pytest.raises(UserError, match=r"no \.kgm file|is no map of kgeography that can be read"):
        list(read_maps(tmp_path))


def test_a_view_has_the_masks_and_boxes_of_its_pixels(whole):
    assert (whole.side, whole.about.name, whole.is_complete) == (40, "Upper", True)
    assert [each.region.name for each in whole.regions] == ["Upper", "Right", "Left", "Odd"]
    for each in whole.regions:
        assert (each.mask == (whole.pixels == each.region.color).all(-1)).all()
        left, top, right, bottom = each.box
        assert each.mask[top:bottom, left:right].sum() == each.mask.sum()
        assert each.mask[top].any() and each.mask[bottom - 1].any() and each.mask[:, left].any()
    assert [each.color for each in whole.regions] == ["red", "green", "blue", None]


@pytest.mark.parametrize("margin", [1.3, 3.0])
def test_every_well_visible_region_has_a_view_around_it(found_map, margin):
    found = list(views(found_map, margin))
    assert {each.about.name for each in found} == set(packages.COLORS)
    assert all(each.side <= 64 and each.pixels.shape == (each.side, each.side, 3) for each in found)
    assert all(any(one.region == each.about for one in each.regions) for each in found)


def test_rectangles_cover_a_mask_exactly():
    random = np.random.default_rng(0)
    for density in (0.0, 0.1, 0.5, 0.9, 1.0):
        mask = random.random((17, 17)) < density
        covered = np.zeros(mask.shape, int)
        for left, top, right, _, _, bottom, _, _ in rectangles(mask):
            covered[top:bottom, left:right] += 1
        assert (covered == mask).all()
    assert rectangles(np.ones((3, 3), bool)) == [[0, 0, 3, 0, 3, 3, 0, 3]]


@pytest.mark.parametrize(
    ("right", "down", "words"),
    [
        (0.1, 0.1, "at the top left"),
        (0.5, 0.5, "in the middle"),
        (0.99, 0.5, "at the right"),
        (0.5, 1.0, "at the bottom"),
    ],
)
def test_a_location_is_the_ninth_of_the_image(right, down, words):
    assert map_texts.location(right, down) == words


def test_captions_say_what_is_there(whole):
    red, green, blue = "a red region at the top", "a green region at the bottom", "a blue region at the bottom left"
    assert map_texts.caption(whole) == f"a map with {red}, {green} and {blue}"
    text, phrases = map_texts.grounded_caption(whole)
    assert text == "Map of Chile with Upper, Right and Left"
    assert all(text[each.start : each.end] == each.region.region.name for each in phrases)
    assert map_texts.narrative(whole) == (
        "This is a part of the map of Chile, which shows its provinces. Upper is red and lies at the top. "
        "Right is green and lies at the bottom. Left is blue and lies at the bottom left. Odd lies at the bottom right."
    )


def test_questions_have_the_answers_of_the_pixels(whole):
    found = {each.type: each for each in map_texts.questions(whole)}
    assert set(found) <= set(map_texts.QUESTION_TYPES)
    assert found["largest"].answer == "red" and found["how_many"].answer == "4"
    # The middle is on the border; whether a color is there cannot be denied, as one region has a color without a name.
    assert "middle" not in found
    areas = {each.color: each for each in whole.regions}
    for type, key in (("larger", lambda each: each.area), ("left", lambda each: -each.center[0])):
        if type in found:
            pair = [color for color in ("red", "green", "blue") if color in found[type].text]
            assert len(pair) == 2 and found[type].answer == max(pair, key=lambda color: key(areas[color]))
    assert {"larger", "left"} & set(found)
    if "is_there" in found:
        assert found["is_there"].answer == "yes" and any(color in found["is_there"].text for color in areas if color)


def test_a_color_is_denied_only_where_all_colors_have_names(whole, found_map):
    assert whole.shows("red") is True and whole.shows("pink") is None
    named = [each for each in whole.regions if each.color]
    codes = np.where(whole.regions[-1].mask, whole.codes[0, 0], whole.codes)
    certain = View(found_map, whole.about, codes, tuple(named), True)
    assert certain.shows("pink") is False
    # Borders are black.
    assert certain.shows("black") is None


def test_colors_that_are_elsewhere_tell_no_region_apart(whole, found_map):
    assert [each.color for each in whole.unique()] == ["red", "green", "blue"]
    # The blue region is not listed: its pixels are those of something else.
    rest = tuple(each for each in whole.regions if each.color != "blue")
    twice = (*rest, Visible(rest[0].region, rest[-1].mask))
    assert [each.color for each in View(found_map, whole.about, whole.codes, twice, True).unique()] == ["green"]


def test_what_is_written_of_coco_is_what_the_image_shows(tmp_path, whole):
    from cm3leon_jax.images import decode_image

    write_coco([whole], "train", tmp_path)
    content = json.loads((tmp_path / "annotations/instances_train2017.json").read_text())
    (image,) = content["images"]
    pixels = decode_image((tmp_path / "train2017" / image["file_name"]).read_bytes(), image["width"], 3)
    classes = {each["id"]: each["name"] for each in content["categories"]}
    assert [classes[each["category_id"]] for each in content["annotations"]] == [
        "red region",
        "green region",
        "blue region",
    ]
    for each in content["annotations"]:
        color = classes[each["category_id"]].removesuffix(" region")
        mask = name_colors(pixels) == COLORS.index(color)
        assert each["area"] == mask.sum() == sum((p[2] - p[0]) * (p[5] - p[1]) for p in each["segmentation"])
        left, top, width, height = each["bbox"]
        assert mask[top : top + height, left : left + width].sum() == mask.sum()


def test_questions_are_published_with_ids_by_type(tmp_path, found_map):
    found = list(views(found_map, 1.3))
    write_questions(found, "val", tmp_path)
    asked = json.loads((tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    answers = json.loads((tmp_path / "v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    assert [each["question_id"] for each in asked] == [each["question_id"] for each in answers] and asked
    by_type = {file.stem: file.read_text().split() for file in (tmp_path / "ids").iterdir()}
    assert sorted(int(each) for ids in by_type.values() for each in ids) == sorted(e["question_id"] for e in asked)
    assert {str(each["question_id"]) in by_type[each["question_type"]] for each in answers} == {True}


def test_grounded_requests_name_regions_at_their_boxes(tmp_path, whole):
    write_object_prompts([whole], tmp_path, resolution=20)
    line = json.loads((tmp_path / "held_out" / "objects.jsonl").read_text())
    boxes = {each["name"]: each["box"] for each in line["objects"]}
    # Half of the view's pixels, 40 a side.
    assert boxes == {
        f"{each.color} region": [round(bound / 2) for bound in each.box] for each in whole.regions if each.color
    }
    write_grit([whole], "train", tmp_path)
    assert (tmp_path / "train" / "00000.tar").stat().st_size > 0


def test_questions_about_flags():
    flag = np.zeros((64, 64, 3), np.uint8)
    flag[:, :20], flag[:, 20:] = (0, 0, 255), (255, 255, 255)
    found = {type: (question, answer) for type, question, answer in flag_questions(flag, "flag")}
    assert found["most"][1] == "white" and found["corner"][1] == "blue"
    for key in "abcdef":
        _, question, answer = flag_questions(flag, key)[0]
        assert (answer == "yes") == any(color in question for color in ("blue", "white"))
    # As much of each; and colors without names.
    flag[:, :32] = (0, 0, 255)
    assert "most" not in {type for type, _, _ in flag_questions(flag, "flag")}
    flag[:, :32] = (150, 80, 0)
    assert not flag_questions(flag, "flag")
