"""Emoji in four styles: Google's, Fluent's in 3D, and OpenMoji's in color and in lines, with OpenMoji's annotations."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cm3leon_jax.errors import UserError
from examples.annotations.graphics import on_white, opened, png, rasterize
from examples.annotations.packages import Packages, listed

SIDE = 64
# OpenMoji's numbers of skin tones; without one, a person is yellow.
TONES = {"": "yellow", "1": "light", "2": "medium-light", "3": "medium", "4": "medium-dark", "5": "dark"}
_TONE_POINTS = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
# Joiners and variants, men and women, and the direction that a person faces.
_LEFT_OUT = {"200D", "FE0F", "2640", "2642", "27A1"} | _TONE_POINTS
_PERSONS = {"1F468", "1F469", "1F9D1"}
STYLES = ("google", "fluent", "color", "lines")


@dataclass(frozen=True)
class Emoji:
    """A row of openmoji.csv: `code` is its code points in hexadecimal, with dashes between them."""

    code: str
    name: str
    group: str
    # Of a person: one of `TONES`, and the code of the one without; None where there are no such variants.
    tone: str | None
    base: str

    @property
    def family(self) -> str:
        """What all variants have in common: skin tones, men and women, directions."""
        points = ("person" if each in _PERSONS else each for each in self.code.split("-"))
        return "-".join(each for each in points if each not in _LEFT_OUT) or self.code

    @property
    def plain_name(self) -> str:
        """Its name without the skin tone."""
        return self.name.partition(": ")[0] if self.tone else self.name

    @property
    def file_stem(self) -> str:
        """Its code as names of files have it, without variation selectors, which packages treat differently."""
        return _stem(self.code)


def _stem(code: str) -> str:
    return "-".join(each for each in code.lower().split("-") if each != "fe0f")


def read_emoji(file: Path) -> list[Emoji]:
    """The emoji of openmoji.csv that are in Unicode, those with two skin tones left out.

    Raises:
      UserError: if it cannot be read, or is another file.
    """
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        return [_emoji(row) for row in rows if _is_wanted(row)]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{file} is no openmoji.csv that can be read ({error})") from None


def _is_wanted(row: dict[str, str]) -> bool:
    return row["skintone_combination"] in ("", "single") and not row["group"].startswith("extras")


def _emoji(row: dict[str, str]) -> Emoji:
    tone = TONES[row["skintone"]] if row["skintone_combination"] else None
    base = row["skintone_base_hexcode"] or row["hexcode"]
    return Emoji(row["hexcode"], row["annotation"], row["group"], tone, base)


@dataclass(frozen=True)
class EmojiImages:
    """The image files of emoji in each style, by the stems of their names."""

    packages: Packages

    def has(self, emoji: Emoji, *styles: str) -> bool:
        return all(emoji.file_stem in self._files[style] for style in styles)

    def image(self, emoji: Emoji, style: str) -> bytes:
        """A PNG of an emoji on white."""
        content = self._files[style][emoji.file_stem].read_bytes()
        image = opened(content) if style in ("google", "fluent") else rasterize(content, SIDE, SIDE)
        return png(on_white(image, SIDE))

    @cached_property
    def _files(self) -> dict[str, dict[str, Path]]:
        packages = self.packages
        folders = {"google": (packages.google, "png"), "fluent": (packages.fluent, "webp")}
        folders |= {style: (packages.openmoji / name / "svg", "svg") for style, name in _OPENMOJI_FOLDERS.items()}
        return {style: _by_stem(folder.glob(f"*.{suffix}")) for style, (folder, suffix) in folders.items()}


_OPENMOJI_FOLDERS = {"color": "color", "lines": "black"}


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    return {_stem(file.stem): file for file in listed(files)}
