"""The icons: which are taken, how they are captioned and held out, and the tars that come of them."""

import hashlib
import json

import numpy as np
import pytest

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.sources.reading import ShardSlice, open_mixture
from cm3leon_jax.errors import UserError
from examples.icons import convert, splits
from examples.icons.drawing import SIDE, icons, is_free, likeness_key
from examples.icons.splits import concept, group_of

SETS = {
    "free": {"license": {"title": "MIT", "spdx": "MIT"}},
    "other": {"license": {"title": "Apache 2.0", "spdx": "Apache-2.0"}},
    "shared": {"license": {"title": "CC BY SA", "spdx": "CC-BY-SA-4.0"}},
    "logos": {"license": {"title": "MIT", "spdx": "MIT"}, "category": "Logos"},
    "colors": {"license": {"title": "MIT", "spdx": "MIT"}, "palette": True},
}


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "package" / "json"
    folder.mkdir(parents=True)
    for name, info in SETS.items():
        things = [f"thing-{first}{second}-outline" for first in "abcdef" for second in "abcdefghij"]
        found = {thing: {"body": f"<path d='{name} {thing}'/>"} for thing in things}
        found["gone"] = {"body": "", "hidden": True}
        found["wide"] = {"body": "<path/>", "width": 20, "height": 10, "top": 3}
        loaded = {"prefix": name, "info": {"name": name.title(), **info}, "icons": found, "width": 24, "height": 24}
        (folder / f"{name}.json").write_text(json.dumps(loaded))
    return tmp_path / "package"


def pixels_of(icon, channels):
    """An image that follows from an icon: wide ones are blank, and one thing looks alike in all sets."""
    if icon.name == "wide":
        return None
    seed = icon.name if icon.name == "thing-cc-outline" else icon.key
    random = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    areas = random.integers(0, 256, (8, 8, 1)).astype(np.uint8)
    return areas.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1).repeat(channels, 2)


def test_icons_of_free_sets_of_one_color_are_taken_and_of_several_on_demand(package):
    assert {icon.set_name for icon in icons(package)} == {"free", "other"}
    assert {icon.set_name for icon in icons(package, is_colored=True)} == {"colors"}
    first = next(icons(package))
    assert (first.key, first.caption) == ("free:thing-aa-outline", "thing aa outline, Free")
    assert not any(icon.name == "gone" for icon in icons(package))
    (wide,) = (icon for icon in icons(package) if icon.key == "free:wide")
    # In the middle of a square as wide as the icon.
    assert 'viewBox="0.0 -2.0 20 20"' in wide.svg


@pytest.mark.parametrize(
    ("license", "expected"),
    [("MIT", True), ("CC-BY-4.0", True), ("CC0-1.0", True), ("CC BY SA", False), ("CC-BY-NC-4.0", False),
     ("GPL-3.0-only", False), ("LGPL-2.1", False), ("OFL-1.1", True)],
)  # fmt: skip
def test_licenses_that_bind_what_is_made_are_not_free(license, expected):
    assert is_free(license) == expected


def test_a_folder_without_the_package_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="has no json/"):
        next(icons(tmp_path))


def test_near_copies_have_one_key_and_others_do_not():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50, SIDE, SIDE, 1)).astype(np.uint8)
    keys = [likeness_key(image) for image in images]
    assert len(set(keys)) == 50 and {len(key) for key in keys} == {15}
    lighter = [likeness_key(np.minimum(image, 250) + np.uint8(5)) for image in np.minimum(images, 250)]
    assert lighter == [likeness_key(image) for image in np.minimum(images, 250)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("calendar-outline", "calendar"),
        ("calendar-24-filled", "calendar"),
        ("arrow-left-bold", "arrow left"),
        ("7", "7"),
    ],
)
def test_a_concept_is_a_name_without_styles_and_numbers(name, expected):
    assert concept(name) == expected


def test_whole_concepts_and_sets_are_held_out(package, monkeypatch):
    monkeypatch.setattr(splits, "_FRACTION", 0.2)
    groups = {}
    for icon in icons(package):
        groups.setdefault(group_of(icon), []).append(icon)
    # An icon's group follows from what it is: no concept is both held out and trained on.
    assert set(groups) == {"train", "random", "concepts"}
    trained = {concept(icon.name) for icon in groups["train"]}
    assert not trained & {concept(icon.name) for icon in groups["concepts"]}
    monkeypatch.setattr(splits, "_SETS_FRACTION", 1.0)
    assert {group_of(icon) for icon in icons(package)} == {"sets"}


def test_tars_hold_each_likeness_once_and_are_the_same_bytes_again(package, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "draw", pixels_of)
    monkeypatch.setattr(splits, "_FRACTION", 0.2)
    counts = convert.convert(package, tmp_path / "first")
    assert counts["looks like another"] == 1 and counts["blank, or cannot be drawn"] == 2
    assert sum(counts.values()) == 122
    convert.convert(package, tmp_path / "second")
    files = sorted(file.relative_to(tmp_path / "first") for file in (tmp_path / "first").rglob("*.*"))
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    assert json.loads((tmp_path / "first" / "counts.json").read_text())["icons"] == counts
    (task,) = open_mixture(CorpusConfig(mixture=f"webdataset:{tmp_path}/first/icons"))
    texts = [found.text for _, found in task.numbered("train", ShardSlice(1))]
    assert len(texts) == counts["train"] and all(text.endswith((", Free", ", Other")) for text in texts)


def test_only_the_first_icons_are_drawn_where_so_many_are_wanted(package, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "draw", pixels_of)
    assert sum(convert.convert(package, tmp_path, most=10).values()) == 10
