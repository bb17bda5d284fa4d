"""The emoji corpus: captions, the split, siblings, drawing, and what is said when the font is missing."""

import hashlib
import sys

import numpy as np
import pytest

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.sources.reading import open_mixture
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import decode_image
from examples.emoji import images as emoji
from tests.examples.fonts import needs_font


@pytest.mark.parametrize(
    ("characters", "caption"),
    [
        ("👩🏽‍🚀", "woman astronaut: medium skin tone"),
        ("🧑🏻‍🤝‍🧑🏿", "people holding hands: light skin tone, dark skin tone"),
        ("👨🏼‍🦰", "man: medium-light skin tone, red hair"),
        ("👩🏿‍🦲", "woman: dark skin tone, bald"),
        ("👱🏾‍♂️", "man: medium-dark skin tone, blond hair"),
        ("👨‍👩‍👧‍👦", "family: man, woman, girl, boy"),
        ("👩🏻‍❤️‍💋‍👨🏾", "kiss: woman, man, light skin tone, medium-dark skin tone"),
        ("🇫🇷", "flag: France"),
        ("🏴󠁧󠁢󠁳󠁣󠁴󠁿", "flag: Scotland"),
        ("🏴‍☠️", "pirate flag"),
        ("#️⃣", "keycap: #"),
        ("🔟", "keycap: 10"),
        ("💋", "kiss mark"),
        ("🕒", "three o'clock"),
        ("🏽", "medium skin tone"),
        ("🦱", "curly hair"),
        ("🦔", "hedgehog"),
    ],
)
def test_captions_read_as_in_the_list_of_unicode(characters, caption):
    assert emoji.captions()[characters] == caption


def test_captions_are_distinct_and_without_marks_of_the_package():
    captions = emoji.captions().values()
    assert len(set(captions)) == len(captions) > 3600
    assert not [caption for caption in captions if "_" in caption or caption != caption.strip(": ")]


def test_the_splits_share_the_emoji_by_a_hash_of_their_characters():
    train, held_out = emoji.members("train"), emoji.members("validation")
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(emoji.captions())
    assert 0.08 < len(held_out) / len(train + held_out) < 0.12
    # Fixed for ever, whatever the version of the names.
    assert "👻" in held_out and "🦔" in train
    for characters in held_out:
        assert hashlib.sha256(characters.encode()).digest()[0] < 26


@pytest.mark.parametrize(
    "variants",
    [
        ("👍", "👍🏻", "👍🏿"),
        ("👩🏽‍🚀", "👨‍🚀", "🧑🏿‍🚀"),
        ("🧑‍🦰", "👩", "👨🏻‍🦳"),
        ("🏃‍♀️", "🏃🏾‍♂️", "🏃"),
        ("👫", "👩🏻‍🤝‍👨🏿", "🧑‍🤝‍🧑"),
        ("💏", "👩‍❤️‍💋‍👨", "💏🏽"),
        ("🧔", "🧔🏻‍♀️"),
        ("🎅🏿", "🧑🏻‍🎄"),
    ],
)
def test_variants_of_tone_hair_and_gender_are_one_family(variants):
    assert len({emoji.family(characters) for characters in variants}) == 1


def test_others_are_of_other_families():
    others = (
        "👍",
        "👎",
        "👩‍🚀",
        "👩‍🚒",
        "👩",
        "👧",
        "🏃",
        "🏃‍➡️",
        "🏻",
        "🏿",
        "🦰",
        "❤️",
        "💔",
        "♀️",
        "♂️",
        "🇫🇷",
        "🇫🇮",
        "👪",
    )
    assert len({emoji.family(characters) for characters in others}) == len(others)


def test_siblings_of_held_out_emoji_are_found_in_training():
    held_out = emoji.members("validation")
    families = {emoji.family(characters) for characters in emoji.members("train")}
    with_sibling = [characters for characters in held_out if emoji.sibling_in_training(characters)]
    assert with_sibling == [characters for characters in held_out if emoji.family(characters) in families]
    assert not emoji.sibling_in_training("👻")
    assert len(held_out) // 3 < len(with_sibling) < len(held_out)


def test_an_emoji_is_found_by_its_caption():
    for characters, caption in emoji.captions().items():
        assert emoji.named(caption) == characters
    assert emoji.named("no emoji at all") is None


@needs_font
def test_images_are_whole_on_white_and_the_same_each_time():
    font = emoji.load_font()
    for characters in ("👻", "👩🏽‍🚀", "🇫🇷", "#️⃣"):
        image = emoji.draw(font, characters)
        assert image.shape == (136, 136, 3) and image.dtype == np.uint8
        assert (image[0] == 255).all() and (image[-1] == 255).all()
        assert np.ptp(image) > 100
        np.testing.assert_array_equal(emoji.draw(emoji.load_font(), characters), image)
    dark, light = (emoji.draw(font, characters).mean() for characters in ("👍🏿", "👍🏻"))
    assert dark < light


@needs_font
def test_what_the_font_has_no_image_for_is_left_out():
    font = emoji.load_font()
    # Letters, a joined pair that is no emoji, and a flag of no country.
    for characters in ("", "👻‍🚀", "🇦🇧"):
        assert emoji.draw(font, characters) is None


@pytest.mark.slow
@needs_font
def test_the_task_yields_caption_and_image():
    (task,) = open_mixture(CorpusConfig(mixture="emoji", modules=("examples.emoji.tasks",)))
    assert task.splits == ("train", "validation")
    documents = task.documents("validation")
    drawn = emoji.images("validation")
    for _ in range(3):
        document, (caption, pixels) = next(documents), next(drawn)
        assert document.segments[0].text == caption
        assert emoji.named(caption) in emoji.members("validation")
        np.testing.assert_array_equal(decode_image(document.segments[1].encoded, 136, 3), pixels)
    assert task.provenance() == emoji.provenance()


def test_without_a_font_the_task_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delenv(emoji.FONT_VARIABLE, raising=False)
    monkeypatch.setattr(emoji, "FONT_FOLDERS", (str(tmp_path),))
    (task,) = open_mixture(CorpusConfig(mixture="emoji", modules=("examples.emoji.tasks",)))
    for read in (lambda: next(task.documents("train")), task.provenance):
        with pytest.raises(UserError, match=r"no NotoColorEmoji\.ttf below .*apt-get install fonts-noto-color-emoji"):
            read()


def test_the_variable_names_the_font(monkeypatch, tmp_path):
    monkeypatch.setenv(emoji.FONT_VARIABLE, str(tmp_path / "absent.ttf"))
    with pytest.raises(UserError, match=r"CM3LEON_EMOJI_FONT is .*but there is no such file"):
        emoji.load_font()
    (tmp_path / "absent.ttf").write_bytes(b"no font")
    with pytest.raises(UserError, match="has no images of 109 pixels"):
        emoji.load_font()


@needs_font
def test_a_pillow_that_joins_no_characters_is_refused(monkeypatch):
    monkeypatch.setattr(emoji.ImageFont.FreeTypeFont, "getlength", lambda self, text: 136.0 * len(text))
    with pytest.raises(UserError, match="no raqm"):
        emoji.load_font()


def test_a_missing_package_of_names_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "emoji", None)
    emoji.captions.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'cm3leon_jax\[data\]'"):
        emoji.captions()
