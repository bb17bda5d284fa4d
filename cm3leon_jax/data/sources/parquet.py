"""Tables of captioned images: parquet files, Arrow files and the Arrow streams of the `datasets` library's cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from cm3leon_jax.data.sources.annotated import FileByFileSource
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference, UnwantedRow
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.rows import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    GROUP_COLUMNS,
    captioned,
    captions_of,
    file_name,
    find_column,
    value_at,
)
from cm3leon_jax.data.sources.skipped import Skipped, printable
from cm3leon_jax.data.sources.splits import split_in
from cm3leon_jax.data.sources.tables import (
    TABLE_SUFFIXES,
    UNREADABLE_TABLE,
    Table,
    UnreadableTable,
    image_columns,
    open_table,
)
from cm3leon_jax.errors import UserError

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")


class _Columns(NamedTuple):
    """The columns of a file: of its images, whether as bytes or as names of files, and of its captions."""

    image: str
    is_bytes: bool
    caption: str


class CaptionedTables(FileByFileSource):
    """`parquet:PATH`: rows with an image, as bytes, {bytes, path} or a file's name, and captions.

    PATH is a folder with what is below it, a file, or a pattern. The `datasets` library's cache-*.arrow are left alone.
    """

    form = "parquet or Arrow files of captioned images"

    def example_files(self) -> list[str]:
        names = [name for name in self.files(*TABLE_SUFFIXES, depth=6) if not _is_cache(name)]
        if not names:
            raise self.other_form(f"there is no {', '.join(TABLE_SUFFIXES[:-1])} or {TABLE_SUFFIXES[-1]} file")
        return names

    def examples_of(self, file: str, skipped: Skipped) -> Iterator[Example | SkippedExample]:
        number = 0
        try:
            table = open_table(self.folder / file)
            columns = self._columns(file, table)
            for number, row in enumerate(table.rows(self._read_columns(table, columns)), start=1):
                found = [(f"{file}:{number - 1}", split_in(file), (file, number - 1, columns, row))]
                yield from self.each(found, self._example)
        except UnreadableTable:
            skipped.add(UNREADABLE_TABLE, f"{file}:{number}", is_document=False)

    def _columns(self, name: str, table: Table) -> _Columns:
        rows, names = self.corpus.rows, table.schema.names
        of_bytes = image_columns(table.schema)
        image = find_column(of_bytes, rows.image_column, _IMAGE_COLUMNS)
        if image is None and not rows.image_column and len(of_bytes) == 1:
            (image,) = of_bytes
        is_bytes = image is not None
        if image is None and (rows.image_column or not of_bytes):
            image = find_column(names, rows.image_column, FILE_COLUMNS)
        caption = find_column(names, rows.caption_column, CAPTION_COLUMNS)
        for found, what, field in ((image, "their images", "image"), (caption, "their captions", "caption")):
            if found is None:
                hint = "; addresses of images are downloaded by img2dataset first" if _has_address(names) else ""
                raise UserError(
                    f"{self.what}: {printable(name)} has the columns {', '.join(map(printable, names))}: none of them "
                    f"is known to hold {what}; name it with config.corpus.rows.{field}_column{hint}"
                )
        return _Columns(str(image), is_bytes, str(caption))

    def _read_columns(self, table: Table, columns: _Columns) -> list[str]:
        """The columns that a row is read with, each once; of a dotted one the first part, where there is no such."""
        names = table.schema.names
        own = (columns.image, columns.caption, self.corpus.rows.language_column)
        wanted = (*own, *GROUP_COLUMNS, "status", *self.curator.columns)
        found = (name if name in names else name.partition(".")[0] for name in wanted)
        return [name for name in dict.fromkeys(found) if name in names]

    def _example(
        self, where: str, split: str | None, found: tuple[str, int, _Columns, dict[str, Any]]
    ) -> Iterator[Example | SkippedExample]:
        file, number, columns, row = found
        cell = value_at(row, columns.image)
        if (row.get("status") or "success") != "success":
            raise UnwantedRow("image that was not downloaded")
        if cell is None or cell == []:
            raise BadRow("missing image")
        if isinstance(cell, list) and len(cell) > 1:
            raise BadRow("several images of one row")
        in_table = ImageReference(file, columns.image, number)
        image = in_table if columns.is_bytes else self.beside(file, file_name(cell))
        captions = captions_of(row, columns.caption, self.corpus.rows)
        yield from captioned(where, split, row, image, captions, self.corpus.rows.captions)


def _is_cache(name: str) -> bool:
    return name.rpartition("/")[2].startswith("cache-") and name.endswith(".arrow")


def _has_address(names: list[str]) -> bool:
    return any(name.lower() in ("url", "image_url") for name in names)
