"""GRIT as img2dataset downloads it: captions whose phrases have boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from cm3leon_jax.data.sources.annotated import AnnotatedSource
from cm3leon_jax.data.sources.boxes import Number, needed, objects_field
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference, value_of
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.splits import split_in
from cm3leon_jax.data.sources.tables import read_rows
from cm3leon_jax.data.sources.tars import TarFault, read_members

_COLUMNS = ("key", "caption", "width", "height", "noun_chunks", "ref_exps")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Grit(AnnotatedSource):
    """`grit:PATH`: parquet files with key, caption, noun_chunks and ref_exps, template `objects`.

    Beside NAME.parquet the images are in NAME.tar or in the folder NAME. Of what was not downloaded, which is much, no
    example is missed.
    """

    form = "parquet files of GRIT, downloaded"

    def examples(self) -> Iterator[Example | SkippedExample]:
        if not (files := self.files(".parquet")):
            raise self.other_form("there is no .parquet file")
        resolution = needed(self.corpus.annotations.resolution, self.what)
        for file in files:
            archive = f"{file.removesuffix('.parquet')}.tar"
            members = self._members(archive) if (self.folder / archive).is_file() else None

            def placed(
                where: str, split: str | None, row: Any, file: str = file, members: Any = members
            ) -> Iterator[Example]:
                key, caption = value_of(row, "key", str), value_of(row, "caption", str)
                size = value_of(row, "width", int, float), value_of(row, "height", int, float)
                spans = row["ref_exps"] or row["noun_chunks"] or []
                phrases = [_phrase(caption, span, *size) for span in spans]
                most = self.corpus.annotations.max_objects
                objects = objects_field(phrases, *size, resolution, self.corpus.squaring, most)
                image = members.get(key) if members is not None else self._file(file, key)
                if image is None:
                    raise BadRow("missing image")
                yield Example(where, "objects", {"caption": caption, "objects": objects, "image": image}, key, split)

            yield from self.each(self._rows(file), placed)

    def _rows(self, file: str) -> Iterator[tuple[str, str | None, Any]]:
        for number, row in enumerate(read_rows(self.folder / file, _COLUMNS, self.form, ("status",))):
            where = f"{file}:{number}"
            if row.get("status", "success") == "success":
                yield where, split_in(file), row
            else:
                self.skipped.add("image that was not downloaded", where, is_document=False)

    def _members(self, archive: str) -> dict[str, ImageReference]:
        """The images of a tar by their keys; what was cut off of it is missing."""
        found: dict[str, ImageReference] = {}
        for member in read_members(self.folder / archive):
            if isinstance(member, TarFault):
                self.skipped.add(member.kind, f"{archive}, byte {member.start}", is_document=False)
                continue
            key, dot, suffix = member.name.rpartition(".")
            if f"{dot}{suffix.lower()}" in _SUFFIXES and member.size:
                found[key] = ImageReference(archive, start=member.start, size=member.size)
        return found

    def _file(self, file: str, key: str) -> ImageReference | None:
        names = (self.image(f"{key}{suffix}", file.removesuffix(".parquet"), "images") for suffix in _SUFFIXES)
        return next((found for found in names if self._is_file(found.file)), None)


def _phrase(caption: str, span: Any, width: Number, height: Number) -> tuple[str, tuple[Number, ...]]:
    """The words and the box of [start, end, x0, y0, x1, y1, score], whose box is relative to the image."""
    if not isinstance(span, list) or len(span) < 6 or not all(map(_is_number, span)):
        raise BadRow("no ref_exps of the published form")
    start, end, left, top, right, bottom = span[:6]
    words = caption[int(start) : int(end)]
    return words, (left * width, top * height, right * width, bottom * height)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
