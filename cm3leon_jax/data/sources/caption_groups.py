"""Documents that follow each other and of which an epoch takes one: an image with each of its captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.documents import Document


def grouped(
    documents: Iterable[Document | SkippedExample], name: Callable[[int], str], start: int
) -> Iterator[Document | SkippedExample]:
    """Documents `start`, `start` + 1, ... with their groups: those that follow each other and are of one name."""
    first = start
    # The group may have begun before.
    while first > 0 and name(first - 1) == name(start):
        first -= 1
    for index, document in enumerate(documents, start):
        if name(index) != name(first):
            first = index
        yield document if isinstance(document, SkippedExample) else dataclasses.replace(document, group=first)
