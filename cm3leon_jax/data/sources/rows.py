"""Rows of named values: which of them are an image and its captions, in which language, and what names the image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cm3leon_jax.data.sources.captions import BadCaption, cleaned
from cm3leon_jax.data.sources.config import RowsConfig
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference, UnwantedRow
from cm3leon_jax.data.sources.json_lines import parsed
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.splits import hash_of

FILE_COLUMNS = ("image", "img", "image_path", "img_path", "file_name", "filename", "path", "filepath")
CAPTION_COLUMNS = ("text", "caption", "texts", "captions")
_ADDRESS = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)
# What names an image best, so that the same image is on one side of the split wherever it comes again.
GROUP_COLUMNS = ("sha256", "url", "key", "__key__", "uid", "id")


def find_column(names: Sequence[Any], wanted: str, known: Sequence[str]) -> str | None:
    """The name of a value: the one that is wanted, whose first part is there, or the first that is known, in any case.

    None where there is none.
    """
    texts = [name for name in names if isinstance(name, str)]
    if wanted:
        return wanted if wanted in texts or wanted.partition(".")[0] in texts else None
    by_lower = {name.strip().lower(): name for name in reversed(texts)}
    return next((by_lower[name] for name in known if name in by_lower), None)


def value_at(row: Any, name: str) -> Any:
    """The value that "a.b" names: b of a, of each where a is a list; None where there is none."""
    if isinstance(row, str):
        row = parsed(row)
    if isinstance(row, list):
        found = [value_at(each, name) for each in row]
        return [inner for each in found for inner in (each if isinstance(each, list) else [each])]
    if not isinstance(row, Mapping):
        return None
    if name in row:
        return row[name]
    first, dot, rest = name.partition(".")
    return value_at(row.get(first), rest) if dot else None


def file_name(value: Any) -> str:
    """The name of an image file that a row gives, alone, as {path}, or as a list of one.

    Raises:
      BadRow: if there is none, or several.
    """
    if isinstance(value, list) and len(value) > 1:
        raise BadRow("several images of one row")
    found = value[0] if isinstance(value, list) and value else value
    found = found.get("path") if isinstance(found, Mapping) else found
    if not isinstance(found, str) or not found:
        raise BadRow("missing image")
    if _ADDRESS.match(found):
        raise BadRow("image that is an address, not a file")
    return found


def captions_of(row: Mapping[str, Any], column: str, config: RowsConfig) -> list[Any]:
    """The captions of a row in the languages that are taken, as they are written; `column` names them.

    Raises:
      BadRow: if it has none, or none in these languages.
    """
    found = value_at(row, column)
    if isinstance(found, str) and found.lstrip().startswith("["):
        listed = parsed(found)
        found = listed if isinstance(listed, list) and all(isinstance(each, str) for each in listed) else found
    captions = found if isinstance(found, list) else [found]
    if not captions or all(each is None for each in captions):
        raise BadRow("row without a caption")
    return in_languages(row, captions, config)


def in_languages(row: Mapping[str, Any], captions: list[Any], config: RowsConfig) -> list[Any]:
    """Those of a row's captions that are in the languages that are taken; all where the config names none.

    Raises:
      BadRow: if none is.
    """
    if not config.language_column:
        return captions
    found = value_at(row, config.language_column)
    if isinstance(found, list):
        if len(found) != len(captions):
            raise BadRow("captions and languages of different numbers")
        captions = [caption for caption, each in zip(captions, found, strict=True) if each in config.languages]
    elif found not in config.languages:
        captions = []
    if not captions:
        raise UnwantedRow("caption in another language")
    return captions


def captioned(
    where: str, split: str | None, row: Mapping[str, Any], image: ImageReference, captions: list[Any], choice: str
) -> Iterator[Example | SkippedExample]:
    """The examples of a row: its image with each of the captions that are chosen (`RowsConfig.captions`).

    Raises:
      BadRow: if none of its captions is sound.
    """
    group, sound, faults = group_of(row, where), list[str](), list[str]()
    for caption in captions:
        try:
            if not isinstance(caption, str):
                raise BadCaption("caption that is no text")
            sound.append(cleaned(caption))
        except BadCaption as error:
            faults.append(str(error))
    if not sound:
        raise BadRow(faults[0])
    for caption in chosen(sound, choice, group):
        yield Example(where, "", {"caption": caption, "image": image}, group, split, row=row)
    if choice in ("all", "sampled"):
        yield from (SkippedExample(fault, where) for fault in faults)


def chosen(captions: Sequence[str], choice: str, name: str) -> list[str]:
    """The captions of an image of this name that `RowsConfig.captions` chooses, each once."""
    different = list(dict.fromkeys(each for each in captions if each.strip())) or list(captions)
    if choice == "first":
        return different[:1]
    if choice == "longest":
        return [max(different, key=len)]
    if choice == "by_hash":
        return [different[hash_of(name.encode("utf-8", "surrogatepass")) % len(different)]]
    return different


def group_of(row: Mapping[str, Any], where: str) -> str:
    """What tells the image of a row from others, wherever it comes again; where the row is if it does not say."""
    for name in GROUP_COLUMNS:
        if isinstance(found := row.get(name), str | int) and found != "":
            return str(found)
    return where
