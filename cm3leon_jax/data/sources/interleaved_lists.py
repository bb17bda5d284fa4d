"""Documents as two lists, of texts and of images, with None in one where the other has something: parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, ClassVar

from cm3leon_jax.data.sources.examples import BadRow, ImageReference, NamedImage, value_of
from cm3leon_jax.data.sources.interleaved import InterleavedSource, Segment
from cm3leon_jax.data.sources.tables import (
    TABLE_SUFFIXES,
    UNREADABLE_TABLE,
    UnreadableTable,
    open_table,
    read_rows,
)
from cm3leon_jax.data.sources.unchanged import UnreadableFile

_COLUMNS = ("texts", "images")


class InterleavedTables(InterleavedSource):
    """Tables with the lists texts and images; images are URLs, or {bytes, path} as `datasets` writes them."""

    suffixes: ClassVar[tuple[str, ...]] = TABLE_SUFFIXES

    def num_rows(self, file: str) -> int | None:
        try:
            table = open_table(self.folder / file)
            if set(_COLUMNS) <= set(names := table.schema.names):
                return table.num_rows()
        except UnreadableTable:
            raise UnreadableFile(UNREADABLE_TABLE) from None
        if not {"url", "key"} <= set(names):
            # Else it is img2dataset's.
            missing = next(name for name in _COLUMNS if name not in names)
            self.skipped.add(f"table without the column {missing}", file, is_document=False)
        return None

    def rows(self, file: str, start: int) -> Iterator[Any]:
        return read_rows(self.folder / file, _COLUMNS, self.form, start=start)

    def segments(self, file: str, number: int, row: Any) -> Sequence[Segment]:
        return in_turn(value_of(row, "texts", list), self.images(file, number, row))

    def images(self, file: str, number: int, row: Any) -> list[Any]:
        """The column images of a row, where the bytes of an image are in it with a reference to them."""
        return [
            ImageReference(file, "images", number, at) if isinstance(image, dict | bytes) else image
            for at, image in enumerate(value_of(row, "images", list))
        ]


def in_turn(texts: Sequence[Any], images: Sequence[Any], may_differ: bool = False) -> list[Segment]:
    """The texts and images of two lists in reading order; images that are strings are URLs.

    Args:
      may_differ: whether the end of one list may be missing, and an index may have both, the image before the text.

    Raises:
      BadRow: if a value is neither None nor of these kinds, or the lists do not fit each other.
    """
    if len(texts) != len(images) and not may_differ:
        raise BadRow("texts and images of unequal length")
    found: list[Segment] = []
    for text, image in zip_longest(texts, images):
        if not isinstance(text, str | None):
            raise BadRow("no texts of the published form")
        if not isinstance(image, str | ImageReference | BadRow | None):
            raise BadRow("no images of the published form")
        if text and image and not may_differ:
            raise BadRow("text and image at one index")
        if image is not None:
            found.append(NamedImage(url=image) if isinstance(image, str) else image)
        if text is not None:
            found.append(text)
    return found
