"""The emoji of a color font, each captioned with its name: a corpus that needs no download.

A tenth is held out, chosen by a hash of the emoji's characters, so that neither another font nor another version of the
names moves an emoji from one side to the other. Most emoji of people differ from others in skin tone, hair or gender
alone; `sibling_in_training` tells the held-out ones of which training holds such a variant from those that are new.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from cm3leon_jax.errors import UserError

SPLITS = ("train", "validation")
HELD_OUT_FRACTION = 0.1
FONT_FILE = "NotoColorEmoji.ttf"
FONT_VARIABLE = "CM3LEON_EMOJI_FONT"
FONT_FOLDERS = ("~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts")
# The one size of the font's bitmaps, and the side of a square that holds each of them (they are 136 x 128).
FONT_SIZE = 109
SIDE = 136

_JOINER, _VARIATION = "\u200d", "\ufe0f"
_TONES = "🏻🏼🏽🏾🏿"
_HAIR = "🦰🦱🦲🦳"
_SIGNS = "♀♂"
# Woman, man and person are one emoji. Couples with two tones are sequences, so those without are written as such, too.
_NEUTRAL = {
    **dict.fromkeys("👩👨", "🧑"),
    **dict.fromkeys("👧👦", "🧒"),
    **dict.fromkeys("👵👴", "🧓"),
    **dict.fromkeys("👸🤴", "🫅"),
    **dict.fromkeys("🤶🎅", "🧑🎄"),
    **dict.fromkeys("👫👬👭", "🧑🤝🧑"),
    "💏": "🧑❤💋🧑",
    "💑": "🧑❤🧑",
}
_REMOVED = dict.fromkeys(map(ord, _TONES + _HAIR + _SIGNS + _JOINER + _VARIATION))
_DETAIL = re.compile(
    r"_((?:light|medium-light|medium|medium-dark|dark)_skin_tone|(?:red|curly|white|blond)_hair|bald|beard)$"
)
_MEMBERS = re.compile(r"^(couple_with_heart|kiss|family)((?:_(?:man|woman|person|boy|girl|adult|child))+)$")


def caption(emoji: str, name: str) -> str:
    """A name as the `emoji` package writes it, such as "man_medium_skin_tone_red_hair", as Unicode's list has it.

    That is "man: medium skin tone, red hair"; the colon and the commas, which the package drops, come back by rule.
    """
    base, details = name.strip(":"), list[str]()
    while found := _DETAIL.search(base):
        base, details = base[: found.start()], [found[1], *details]
    if found := _MEMBERS.match(base):
        base, details = found[1], [*found[2].split("_")[1:], *details]
    if base.startswith("keycap_"):
        base, details = "keycap", [base.removeprefix("keycap_")]
    elif _is_flag_of_a_place(emoji):
        base, details = "flag", [base]
    text = f"{base}: {', '.join(details)}" if details else base
    return text.replace("_", " ").replace("’", "'")


def _is_flag_of_a_place(emoji: str) -> bool:
    # A pair of regional letters, or a black flag with the tags of a region.
    return "🇦" <= emoji[0] <= "🇿" or (emoji[0] == "🏴" and emoji[-1] == "\U000e007f")


@cache
def captions() -> MappingProxyType[str, str]:
    """The caption of every emoji that has one, fully qualified and components, in the order of the package.

    Raises:
      UserError: if the package `emoji` is not installed.
    """
    package = _package()
    statuses = {package.STATUS["component"], package.STATUS["fully_qualified"]}
    return MappingProxyType(
        {
            emoji: caption(emoji, entry["en"])
            for emoji, entry in package.EMOJI_DATA.items()
            if entry["status"] in statuses
        }
    )


def named(text: str) -> str | None:
    """Finds the emoji of a caption; None if there is none."""
    return _by_caption().get(text)


@cache
def _by_caption() -> dict[str, str]:
    return {text: emoji for emoji, text in captions().items()}


def _package() -> Any:
    try:
        import emoji
    except ImportError:
        raise UserError("the names of emoji come from the package `emoji`: pip install 'cm3leon_jax[data]'") from None
    return emoji


def font_file() -> Path:
    """The font: the file that the environment variable CM3LEON_EMOJI_FONT names, or the first in the usual folders.

    Raises:
      UserError: if there is none.
    """
    if named := os.environ.get(FONT_VARIABLE):
        if not Path(named).is_file():
            raise UserError(f"{FONT_VARIABLE} is {named}, but there is no such file: name {FONT_FILE}")
        return Path(named)
    for folder in FONT_FOLDERS:
        found = sorted(Path(folder).expanduser().rglob(FONT_FILE))
        if found:
            return found[0]
    raise UserError(
        f"no font to draw emoji with: no {FONT_FILE} below {', '.join(FONT_FOLDERS)}; run "
        f"`apt-get install fonts-noto-color-emoji`, or name the file in the environment variable {FONT_VARIABLE}"
    )


def load_font() -> ImageFont.FreeTypeFont:
    """The font at the size of its images.

    Raises:
      UserError: if there is none, it is no font of color bitmaps, or Pillow cannot join characters into one image.
    """
    file = font_file()
    try:
        font = ImageFont.truetype(file, FONT_SIZE)
    except OSError as error:
        raise UserError(
            f"{file} has no images of {FONT_SIZE} pixels ({error}): name {FONT_FILE} in {FONT_VARIABLE}"
        ) from None
    if not _is_one_glyph(font, f"👩{_JOINER}🚀"):
        raise UserError(
            "Pillow draws emoji of several characters side by side, since it has no raqm: `pip install --upgrade "
            "pillow`, and where that does not help `apt-get install libfribidi0`"
        )
    return font


def _is_one_glyph(font: ImageFont.FreeTypeFont, emoji: str) -> bool:
    return font.getlength(emoji) <= SIDE


def draw(font: ImageFont.FreeTypeFont, emoji: str) -> UInt8[np.ndarray, "136 136 3"] | None:
    """Renders an emoji on white; None if the font has no image for it, or only images for its parts."""
    image = _drawn(font, emoji) if _is_one_glyph(font, emoji) else None
    # The font renders an unknown flag like that of a country that does not exist.
    if image is None or not _is_flag_of_a_place(emoji):
        return image
    unknown = _drawn(font, "🇦🇦")
    return None if unknown is not None and np.array_equal(image, unknown) else image


def _drawn(font: ImageFont.FreeTypeFont, emoji: str) -> UInt8[np.ndarray, "136 136 3"] | None:
    image = glyph(font, emoji)
    if image is None:
        return None
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def glyph(font: ImageFont.FreeTypeFont, emoji: str) -> Image.Image | None:
    """Renders an emoji on a transparent square of `SIDE` pixels; None if the font has no image for it."""
    image = Image.new("RGBA", (SIDE, SIDE))
    _, top, _, bottom = font.getbbox(emoji)
    ImageDraw.Draw(image).text((0, (SIDE - top - bottom) // 2), emoji, font=font, embedded_color=True)
    return None if image.getbbox() is None else image


@cache
def members(split: str) -> tuple[str, ...]:
    """Lists the emoji of "train" or "validation" that have a name, in the font or not.

    They are in the order of their hash, so that the first n are a fair sample.
    """
    ordered = sorted(captions(), key=_position)
    return tuple(emoji for emoji in ordered if (_position(emoji) < HELD_OUT_FRACTION) == (split == "validation"))


def images(split: str) -> Iterator[tuple[str, UInt8[np.ndarray, "136 136 3"]]]:
    """Yields captions and images of "train" or "validation", always in the same order."""
    font = load_font()
    for emoji in members(split):
        image = draw(font, emoji)
        if image is not None:
            yield captions()[emoji], image


def _position(emoji: str) -> float:
    return int.from_bytes(hashlib.sha256(emoji.encode()).digest()[:8], "big") / 2**64


def family(emoji: str) -> str:
    """Returns an emoji without skin tone, hair and gender, equal for its variants."""
    plain = emoji.translate(_REMOVED) or emoji
    return "".join(_NEUTRAL.get(character, character) for character in plain)


def sibling_in_training(emoji: str) -> bool:
    """Whether training holds a variant of a held-out emoji: another with the same `family`."""
    return family(emoji) in _training_families()


@cache
def _training_families() -> frozenset[str]:
    return frozenset(map(family, members("train")))


def provenance() -> dict[str, str]:
    """Identifies what images and captions depend on: the font and the version of the names.

    Raises:
      UserError: if the font or the package is missing.
    """
    font = load_font()
    digest = hashlib.sha256(font_file().read_bytes()).hexdigest()
    return {
        "font": f"{' '.join(filter(None, font.getname()))} {digest[:16]}",
        "names": f"emoji {_package().__version__}",
    }
