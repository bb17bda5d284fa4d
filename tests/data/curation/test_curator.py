"""What a config asks of rows and documents, one bound at a time, and what is answered."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from cm3leon_jax.data.curation.config import CurationConfig, DuplicatesConfig
from cm3leon_jax.data.curation.curator import Curator
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import encode_png


def image(width, height):
    return encode_png(np.zeros((height, width, 3), np.uint8))


def document(text="a fox", *images):
    return Document((TextSegment(text), *map(ImageSegment, images)))


@pytest.mark.parametrize(
    ("asked", "found", "reason"),
    [
        ({}, document("", b"no image"), ""),
        ({"min_side": 32}, document("a", image(32, 40)), ""),
        ({"min_side": 32}, document("a", image(40, 31)), "image with a side of less than 32 pixels: 40 x 31"),
        (
            {"min_side": 32},
            document("a", image(40, 40), image(8, 40)),
            "image with a side of less than 32 pixels: 8 x 40",
        ),
        ({"min_side": 32}, document("a"), ""),
        ({"min_side": 32}, document("a", b"whoever decodes it says why"), ""),
        ({"max_aspect_ratio": 2.0}, document("a", image(40, 20)), ""),
        (
            {"max_aspect_ratio": 2.0},
            document("a", image(19, 40)),
            "image longer than 2 times its shorter side: 19 x 40",
        ),
        ({"min_text_length": 3}, document("abc"), ""),
        ({"min_text_length": 3}, document("ab"), "text of less than 3 characters: 2"),
        ({"max_text_length": 3}, document("abc"), ""),
        ({"max_text_length": 3}, document("äbcd"), "text of more than 3 characters: 4"),
    ],
)
def test_documents(asked, found, reason):
    curated = Curator(CurationConfig(**asked)).curated(found)
    assert curated == (reason or found)


def test_interleaved_documents_go_on_without_images_that_are_not_wanted():
    found = replace(document("a fox", image(40, 40), image(8, 40)), min_images=1, omitted=("missing image",))
    curated = Curator(CurationConfig(min_side=32)).curated(found)
    assert isinstance(curated, Document) and curated.segments == found.segments[:2]
    assert curated.omitted == ("missing image", "image with a side of less than 32 pixels: 8 x 40")


@pytest.mark.parametrize(
    ("asked", "row", "reason"),
    [
        ({}, {}, ""),
        ({"at_least": {"score": 5.0}}, {"score": 5.0}, ""),
        ({"at_least": {"score": 5.0}}, {"score": "5.5"}, ""),
        ({"at_least": {"score": 5.0}}, {"score": 4.96}, "score below 5: 4.96"),
        ({"at_most": {"nsfw": 0.5}}, {"nsfw": False}, ""),
        ({"at_most": {"nsfw": 0.5}}, {"nsfw": True}, "nsfw above 0.5: 1"),
        ({"at_most": {"a.b": 0.5}}, {"a": {"b": 0.4}}, ""),
        ({"at_most": {"a.b": 0.5}}, {"a.b": 0.6}, "a.b above 0.5: 0.6"),
        ({"at_most": {"nsfw": 0.5}}, {}, "row without a number nsfw"),
        ({"at_most": {"nsfw": 0.5}}, {"nsfw": None}, "row without a number nsfw"),
        ({"at_most": {"nsfw": 0.5}}, {"nsfw": float("nan")}, "row without a number nsfw"),
        ({"at_most": {"nsfw": 0.5}}, {"nsfw": "UNLIKELY"}, "row without a number nsfw"),
        ({"at_most": {"a.b": 0.5}}, {"a": [0.1]}, "row without a number a.b"),
        ({"at_most": {"nsfw": 0.5}}, {"nsfw": 10**400}, "row without a number nsfw"),
    ],
)
def test_rows(asked, row, reason):
    assert Curator(CurationConfig(**asked)).of_row(row) == reason


def test_blocklists_name_hashes_and_addresses(tmp_path):
    blocked, sound = image(8, 8), image(8, 9)
    digest = hashlib.sha256(blocked).hexdigest()
    file = tmp_path / "blocked.txt"
    file.write_text(f"\ufeffhttp://a.org/é.png\r\n\n{digest.upper()}\n")
    curator = Curator(CurationConfig(blocklist=str(file)))
    assert curator.curated(document("a", sound, blocked)) == "blocked image"
    assert curator.curated(document("a", sound)) == document("a", sound)
    assert curator.of_row({"url": "http://a.org/é.png"}) == "blocked address"
    assert curator.of_row({"url": "http://a.org/e.png", "sha256": 7}) == ""
    assert curator.of_row({"sha256": digest}) == "blocked image"
    first = curator.description()
    file.write_text("http://a.org/b.png\n")
    assert Curator(CurationConfig(blocklist=str(file))).description() != first
    file.write_text("\n")
    with pytest.raises(UserError, match="has no entries"):
        Curator(CurationConfig(blocklist=str(file)))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Curator(CurationConfig(blocklist=str(tmp_path / "nowhere")))


def test_what_is_asked_is_described():
    assert Curator(CurationConfig()).description() == ""
    described = Curator(CurationConfig(min_side=8, at_most={"nsfw": 0.5})).description()
    assert described == '{"at_most": {"nsfw": 0.5}, "min_side": 8}'


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CurationConfig(min_side=0), "config.corpus.curation.min_side is 0: at least 1"),
        (lambda: CurationConfig(max_aspect_ratio=0.5), "curation.max_aspect_ratio is 0.5: at least 1"),
        (
            lambda: CurationConfig(at_most={"nsfw": float("nan")}),
            "curation.at_most.nsfw is nan: any number, and finite",
        ),
        (lambda: DuplicatesConfig(drop="some"), "config.corpus.duplicates.drop is 'some'"),
        (lambda: DuplicatesConfig(max_distance=3), "max_distance compares nothing"),
        (lambda: DuplicatesConfig(drop="images", max_distance=11), "max_distance is 11: at least 0 and at most 10"),
    ],
)
def test_values_that_make_no_sense(make, message):
    with pytest.raises(UserError, match=message):
        make()
