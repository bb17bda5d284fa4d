"""OmniCorpus: web pages as texts and images in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cm3leon_jax.data.sources.examples import value_of
from cm3leon_jax.data.sources.interleaved import Segment
from cm3leon_jax.data.sources.interleaved_lists import InterleavedTables, in_turn


class OmniCorpus(InterleavedTables):
    """`omnicorpus:PATH`: parquet files with images and texts, lists with None in one where the other has something.

    The end of a list may be missing, and an index may have an image and a text, in this order.
    """

    form = "parquet files of OmniCorpus"

    def segments(self, file: str, number: int, row: Any) -> Sequence[Segment]:
        return in_turn(value_of(row, "texts", list), self.images(file, number, row), may_differ=True)
