"""Captions as people's programs write them: encodings, byte order marks, line ends, several in a file."""

from __future__ import annotations

import codecs

# A caption file that is longer is none: it would fill a row of tokens many times over.
LONGEST = 1 << 20

_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Its byte order mark begins as that of UTF-16 does.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_REMOVED = {ord("\0"): None, ord("\ufeff"): None}


class BadCaption(Exception):
    """A caption that is no text; its message is the kind of fault."""


def encoding_of(start: bytes) -> str:
    """The encoding of a text file by its first bytes: that of its byte order mark, else UTF-8."""
    return next((encoding for mark, encoding in _ENCODINGS if start.startswith(mark)), "utf-8")


def cleaned(text: str) -> str:
    """A caption without byte order marks and NULs, with line ends of one kind, and no space around it.

    Raises:
      BadCaption: if it holds a half of a surrogate pair, or bytes that are not UTF-8, or nothing.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_REMOVED).strip()
    if not text:
        raise BadCaption("empty caption")
    try:
        text.encode()
    except UnicodeEncodeError:
        is_bytes = any("\udc80" <= each <= "\udcff" for each in text)
        raise BadCaption("caption that is not UTF-8" if is_bytes else "caption with half a character") from None
    return text


def captions_in(content: bytes, line: str) -> list[str]:
    """The captions of a caption file that `line` chooses (`FolderConfig.caption_line`), or a `BadCaption`."""
    if len(content) > LONGEST:
        raise BadCaption("caption file that is too long")
    try:
        text = cleaned(content.decode(encoding_of(content)))
    except UnicodeDecodeError:
        raise BadCaption("caption that is not UTF-8") from None
    if line == "all":
        return [text]
    lines = [each.strip() for each in text.split("\n") if each.strip()]
    if line == "each":
        return list(dict.fromkeys(lines))
    if line == "first":
        return lines[:1]
    for each in lines:
        if each.startswith(line) and (found := each.removeprefix(line).strip()):
            return [found]
    raise BadCaption("caption file without the line")
