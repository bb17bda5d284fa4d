"""Makes texts from data safe to print: spells out what would steer a terminal or hide from a reader."""

from __future__ import annotations

import unicodedata

from cm3leon_jax.storage.address import shown

# Controls; invisible formatting, among it bidirectional marks; halves of surrogate pairs, which no stream can write;
# ends of lines and paragraphs.
_SPELLED_OUT = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Joiners, without which Persian words and families of emoji fall apart.
_JOINERS = "\u200c\u200d"


def visible(text: str, keep: str = "") -> str:
    r"""Puts a text on one line, with controls and invisible characters as `\x1b`, `\n`, `\u202e`, except `keep`.

    The paths of local copies of objects are their addresses.
    """
    text = shown(text)
    if text.isprintable():
        return text
    return "".join(
        character
        if character in keep + _JOINERS or unicodedata.category(character) not in _SPELLED_OUT
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def counted(count: int, noun: str) -> str:
    """A number of things, such as "1,024 codes" or "1 code"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
