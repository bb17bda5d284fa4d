"""Metadata files of image folders: metadata.jsonl, .csv and .parquet in the layout of Hugging Face's imagefolder.

Each line names an image, from the file's own folder on, and its caption or captions.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from cm3leon_jax.data.sources.captions import encoding_of
from cm3leon_jax.data.sources.config import RowsConfig
from cm3leon_jax.data.sources.examples import BadRow, UnwantedRow
from cm3leon_jax.data.sources.rows import CAPTION_COLUMNS, captions_of, chosen, find_column, value_at
from cm3leon_jax.data.sources.skipped import printable
from cm3leon_jax.data.sources.tables import texts_of
from cm3leon_jax.errors import UserError

# Characters of a line, and of a cell of a CSV file; longer ones are passed over unread.
_LONGEST_LINE = 1 << 22
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
    row: Mapping[str, Any]


class BadLine(NamedTuple):
    """A line that gives no document, and the kind of its fault."""

    number: int
    kind: str
    # Of a line without a fault that the config does not want: its image's name.
    unwanted: str = ""


def read_metadata(file: Path, config: RowsConfig, others: Sequence[str] = ()) -> Iterator[MetadataLine | BadLine]:
    """The lines of a metadata file, numbered from 1; the first of a CSV file are its columns.

    Args:
      others: columns that are read, too, where they are there.

    Raises:
      UserError: if it has no columns of images and captions, or a Parquet file needs pyarrow.
    """
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _read_parquet(file, config, others)
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


def _read_jsonl(text: IO[str], file: Path, config: RowsConfig) -> Iterator[MetadataLine | BadLine]:
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
            yield _line(number, record, columns, config)


def _read_csv(text: IO[str], file: Path, config: RowsConfig) -> Iterator[MetadataLine | BadLine]:
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
    columns = _both_columns(names, file, config)
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
            yield _line(1 + reader.line_num, dict(zip(names, cells, strict=False)), columns, config)


def _read_parquet(file: Path, config: RowsConfig, others: Sequence[str]) -> Iterator[MetadataLine | BadLine]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{file} needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        opened = parquet.ParquetFile(file)
        columns = _both_columns(opened.schema_arrow.names, file, config)
        wanted = (*columns, config.language_column, *others)
        either = {*wanted, *(name.partition(".")[0] for name in wanted)}
        names = [name for name in opened.schema_arrow.names if name in either]
        for batch in opened.iter_batches(batch_size=1024, columns=names):
            for cells in zip(*(texts_of(batch.column(name)) for name in names), strict=True):
                number += 1
                yield _line(number, dict(zip(names, cells, strict=True)), columns, config)
    except pyarrow.ArrowException:
        yield BadLine(number + 1, UNREADABLE)


def _line(
    number: int, row: dict[str, Any], columns: tuple[str | None, str | None], config: RowsConfig
) -> MetadataLine | BadLine:
    image, caption = columns
    name = value_at(row, image) if image else None
    try:
        captions = captions_of(row, caption or "", config)
    except UnwantedRow as error:
        return BadLine(number, str(error), name if isinstance(name, str) else "")
    except BadRow:
        return BadLine(number, MALFORMED)
    if not isinstance(name, str) or not all(isinstance(each, str) for each in captions):
        return BadLine(number, MALFORMED)
    return MetadataLine(number, name, tuple(chosen(captions, config.captions, name)), row)


def _both_columns(names: Sequence[str], file: Path, config: RowsConfig) -> tuple[str, str]:
    """The columns of images and captions, of a file whose lines all have the same."""
    image, caption = _columns(names, file, config)
    if image is not None and caption is not None:
        return image, caption
    what, field = ("the images", "image") if image is None else ("their captions", "caption")
    raise UserError(
        f"{file} has the columns {', '.join(map(printable, names)) or '(none)'}: none of them is known to name {what}; "
        f"name it with config.corpus.rows.{field}_column"
    )


def _columns(names: Sequence[str], file: Path, config: RowsConfig) -> tuple[str | None, str | None]:
    """The columns of images and captions among a file's, None where there is none; of several there may be but one."""
    caption = find_column(names, config.caption_column, CAPTION_COLUMNS)
    image = find_column(names, config.image_column, (_IMAGE_COLUMN,))
    if image is None and not config.image_column:
        ending = [name for name in names if isinstance(name, str) and name.lower().endswith(f"_{_IMAGE_COLUMN}")]
        if len(ending) > 1:
            raise UserError(
                f"{file} names images in several columns ({', '.join(map(printable, sorted(ending)))}): "
                "choose one with config.corpus.rows.image_column"
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
