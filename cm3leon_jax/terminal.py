"""Texts that come from data, made safe to print: what would steer a terminal or hide from a reader is spelled out."""

from __future__ import annotations

import unicodedata

# Controls; invisible formatting, among it the bidirectional marks that turn a line around; halves of surrogate pairs,
# which no stream can write; ends of lines and paragraphs.
_SPELLED_OUT = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Joiners, without which Persian words and families of emoji fall apart.
_JOINERS = "\u200c\u200d"


def visible(text: str, keep: str = "") -> str:
    r"""A text on one line, with escape sequences, controls and invisible marks as `\x1b`, `\n`, `\u202e`.

    Args:
      text: from a caption, an answer, a file's name, a damaged file.
      keep: characters to leave as they are, such as a newline.
    """
    if text.isprintable():
        return text
    return "".join(character if _is_shown(character, keep) else _spelled(character) for character in text)


def _is_shown(character: str, keep: str) -> bool:
    return character in keep or character in _JOINERS or unicodedata.category(character) not in _SPELLED_OUT


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
