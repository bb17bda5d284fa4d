"""Metadata files of image folders: metadata.jsonl, .csv and .parquet in the layout of Hugging Face's imagefolder.

Each line names an image, from the file's own folder on, and its caption or captions.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from cm3leon_jax.data.sources.captions import encoding_of
from cm3leon_jax.data.sources.config import FolderConfig
from cm3leon_jax.data.sources.skipped import printable
from cm3leon_jax.errors import UserError

# Characters of a line, and of a cell of a CSV file; longer ones are passed over unread.
_LONGEST_LINE = 1 << 22
_CAPTION_COLUMNS = ("text", "caption", "texts", "captions")
_IMAGE_COLUMN = "file_name"
_DELIMITERS = ",;\t"

MALFORMED = "metadata line that is malformed"
TOO_LONG = "metadata line that is too long"
UNREADABLE = "metadata file that cannot be read"


class MetadataLine(NamedTuple):
    """An image's name, from the folder of the metadata file on, with its captions as they are written."""

    number: int
    image: str
    captions: tuple[str, ...]


class BadLine(NamedTuple):
    """A line that gives no document, and the kind of its fault."""

    number: int
    kind: str


def read_metadata(file: Path, config: FolderConfig) -> Iterator[MetadataLine | BadLine]:
    """The lines of a metadata file, numbered from 1; the first of a CSV file are its columns.

    Raises:
      UserError: if it has no columns of images and captions, or a Parquet file needs pyarrow.
    """
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _read_parquet(file, config)
            return
        with file.open("rb") as opened:
            encoding = encoding_of(opened.read(4))
        # Bytes that are not UTF-8 stay recognizable; in a file name they may be right.
        errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
        newline = "" if suffix == ".csv" else None
        with file.open(encoding=encoding, errors=errors, newline=newline) as text:
            yield from (_read_csv if suffix == ".csv" else _read_jsonl)(text, file, config)
    except OSError:
        yield BadLine(0, UNREADABLE)


def _read_jsonl(text: IO[str], file: Path, config: FolderConfig) -> Iterator[MetadataLine | BadLine]:
    for number, line in _lines(text):
        if line is None:
            yield BadLine(number, TOO_LONG)
        elif line.strip():
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            record = found if isinstance(found, dict) else {}
            columns = _columns(list(record), file, config)
            yield _line(number, *(record.get(column or "") for column in columns))


def _read_csv(text: IO[str], file: Path, config: FolderConfig) -> Iterator[MetadataLine | BadLine]:
    too_long = list[int]()

    def bounded() -> Iterator[str]:
        for number, line in _lines(text):
            if line is None:
                too_long.append(number)
            yield line or "\n"

    lines = bounded()
    header = next(lines, "")
    delimiter = max(_DELIMITERS, key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    columns = [names.index(column) for column in _both_columns(names, file, config)]
    # Without `strict` a quotation mark that is never closed takes in all lines after it.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error:
            yield BadLine(1 + reader.line_num, MALFORMED)
            continue
        yield from (BadLine(number, TOO_LONG) for number in too_long)
        too_long.clear()
        if cells is None:
            return
        if cells:
            found = [cells[column] if column < len(cells) else None for column in columns]
            yield _line(1 + reader.line_num, *found)


def _read_parquet(file: Path, config: FolderConfig) -> Iterator[MetadataLine | BadLine]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{file} needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        opened = parquet.ParquetFile(file)
        names = _both_columns(opened.schema_arrow.names, file, config)
        for batch in opened.iter_batches(batch_size=1024, columns=names):
            for cells in zip(*(_texts(batch.column(name), pyarrow) for name in names), strict=True):
                number += 1
                yield _line(number, *cells)
    except pyarrow.ArrowException:
        yield BadLine(number + 1, UNREADABLE)


def _texts(column: Any, pyarrow: Any) -> Iterator[Any]:
    """A column's strings, or lists of strings; bytes that are not UTF-8 stay recognizable."""
    for kind in (pyarrow.large_binary(), pyarrow.large_list(pyarrow.large_binary())):
        with contextlib.suppress(pyarrow.ArrowNotImplementedError):
            column = column.cast(kind)
            break
    return (_decoded(value) for value in column.to_pylist())


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return [_decoded(each) for each in value] if isinstance(value, list) else value


def _line(number: int, image: Any, caption: Any) -> MetadataLine | BadLine:
    captions = caption if isinstance(caption, list) else [caption]
    if not isinstance(image, str) or not captions or not all(isinstance(each, str) for each in captions):
        return BadLine(number, MALFORMED)
    return MetadataLine(number, image, tuple(captions))


def _both_columns(names: Sequence[str], file: Path, config: FolderConfig) -> list[str]:
    """The columns of images and captions, of a file whose lines all have the same."""
    image, caption = _columns(names, file, config)
    if image is not None and caption is not None:
        return [image, caption]
    what, field = ("the images", "image") if image is None else ("their captions", "caption")
    raise UserError(
        f"{file} has the columns {', '.join(map(printable, names)) or '(none)'}: none of them is known to name {what}; "
        f"name it with config.corpus.folder.{field}_column"
    )


def _columns(names: Sequence[str], file: Path, config: FolderConfig) -> tuple[str | None, str | None]:
    """The columns of images and captions among a file's, None where there is none; of several there may be but one."""
    by_lower = {name.strip().lower(): name.strip() for name in reversed(names) if isinstance(name, str)}
    caption = next((by_lower[name] for name in _CAPTION_COLUMNS if name in by_lower), None)
    image = by_lower.get(_IMAGE_COLUMN)
    if config.caption_column:
        caption = config.caption_column if config.caption_column in names else None
    if config.image_column:
        image = config.image_column if config.image_column in names else None
    elif image is None:
        ending = [name for lower, name in by_lower.items() if lower.endswith(f"_{_IMAGE_COLUMN}")]
        if len(ending) > 1:
            raise UserError(
                f"{file} names images in several columns ({', '.join(map(printable, sorted(ending)))}): "
                "choose one with config.corpus.folder.image_column"
            )
        image = ending[0] if ending else None
    return image, caption


def _lines(text: IO[str]) -> Iterator[tuple[int, str | None]]:
    """The lines of a text file with their numbers; None for one that is too long, which is read past in pieces."""
    number = 0
    while line := text.readline(_LONGEST_LINE):
        number += 1
        if len(line) < _LONGEST_LINE or line.endswith("\n"):
            yield number, line
            continue
        while (more := text.readline(_LONGEST_LINE)) and not more.endswith("\n"):
            pass
        yield number, None
