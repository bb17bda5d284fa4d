"""JSON lines of captioned images: each names an image file and its captions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cm3leon_jax.data.sources.annotated import AnnotatedSource
from cm3leon_jax.data.sources.examples import BadRow, Example
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.rows import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    captioned,
    captions_of,
    file_name,
    find_column,
    value_at,
)


class CaptionedJsonLines(AnnotatedSource):
    """`jsonl:PATH`: lines {"image": "a/b.jpg", "caption": "..."}, whose images are named from the file or from PATH on.

    PATH is a file, a pattern, or a folder of such files. `config.corpus.rows` says how the two values are called.
    """

    form = "JSON lines of captioned images"

    def examples(self) -> Iterator[Example | SkippedExample]:
        files = self.files(".jsonl", ".ndjson", depth=2)
        if not files:
            raise self.other_form("there is no .jsonl file")
        for file in files:
            rows = ((where, split, (file, row)) for where, split, row in self.read_json_lines(file))
            yield from self.each(rows, self._example)

    def _example(self, where: str, split: str | None, found: tuple[str, Any]) -> Iterator[Example | SkippedExample]:
        file, row = found
        if not isinstance(row, dict):
            raise BadRow("malformed JSON")
        rows = self.corpus.rows
        image = find_column(list(row), rows.image_column, FILE_COLUMNS)
        caption = find_column(list(row), rows.caption_column, CAPTION_COLUMNS)
        if image is None:
            raise BadRow(f"row without an image ({rows.image_column or 'see config.corpus.rows.image_column'})")
        if caption is None:
            raise BadRow(f"row without a caption ({rows.caption_column or 'see config.corpus.rows.caption_column'})")
        reference = self.beside(file, file_name(value_at(row, image)))
        yield from captioned(where, split, row, reference, captions_of(row, caption, rows), rows.captions)
