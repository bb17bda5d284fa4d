"""OBELICS: web pages as texts and images in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cm3leon_jax.data.sources.interleaved import Segment
from cm3leon_jax.data.sources.interleaved_lists import InterleavedTables

# Stands in texts where one article of a page ends and another begins.
_END_OF_ARTICLE = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"


class Obelics(InterleavedTables):
    """`obelics:PATH`: parquet files with images and texts, lists of equal length, one of them None at each index."""

    form = "parquet files of OBELICS"

    def segments(self, file: str, number: int, row: Any) -> Sequence[Segment]:
        found = super().segments(file, number, row)
        return [each.replace(_END_OF_ARTICLE, "\n\n") if isinstance(each, str) else each for each in found]
