"""Says which documents, and which rows before they are documents, a config does not want, and why."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from cm3leon_jax.data.curation.blocklist import Blocklist
from cm3leon_jax.data.curation.config import CurationConfig
from cm3leon_jax.documents import Document, ImageSegment
from cm3leon_jax.images import UnreadableImage, image_size
from cm3leon_jax.paths import copied


class Curator:
    """Compares rows and documents with a `CurationConfig`.

    What it answers is empty for what is taken, else the kind of what is wrong, after a colon possibly followed by more.
    """

    def __init__(self, config: CurationConfig) -> None:
        self._config = config
        file = copied(config.blocklist, "config.corpus.curation.blocklist") if config.blocklist else None
        self._blocked = Blocklist(file) if file else None
        # Whether anything is asked of a row.
        self.asks_rows = bool(config.at_least or config.at_most or self._blocked)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row needs."""
        return (*self._config.at_least, *self._config.at_most, *(("url", "sha256") if self._blocked else ()))

    @property
    def min_clip_score(self) -> float | None:
        """The least score of a caption and an image by the run's encoder, which is asked elsewhere."""
        return self._config.min_clip_score

    def of_row(self, row: Mapping[str, Any]) -> str:
        """Why a row is not taken."""
        for column, bound in self._config.at_least.items():
            if (value := _number(row, column)) is None:
                return f"row without a number {column}"
            if value < bound:
                return f"{column} below {bound:g}: {value:g}"
        for column, bound in self._config.at_most.items():
            if (value := _number(row, column)) is None:
                return f"row without a number {column}"
            if value > bound:
                return f"{column} above {bound:g}: {value:g}"
        if self._blocked:
            if isinstance(address := row.get("url"), str) and self._blocked.has_address(address):
                return "blocked address"
            if isinstance(sha256 := row.get("sha256"), str) and self._blocked.has_sha256(sha256):
                return "blocked image"
        return ""

    def curated(self, document: Document) -> Document | str:
        """A document as it is taken: an interleaved one without images that are not wanted; or why it is not taken."""
        reasons = {
            number: reason
            for number, segment in enumerate(document.segments)
            if isinstance(segment, ImageSegment) and (reason := self._of_image(segment.encoded))
        }
        if reason := self._of_text(document):
            return reason
        if not reasons:
            return document
        if document.min_images is None:
            return next(iter(reasons.values()))
        kept = tuple(segment for number, segment in enumerate(document.segments) if number not in reasons)
        return replace(document, segments=kept, omitted=(*document.omitted, *reasons.values()))

    def _of_text(self, document: Document) -> str:
        config, length = self._config, len(document.text)
        if config.min_text_length is not None and length < config.min_text_length:
            return f"text of less than {config.min_text_length} characters: {length}"
        if config.max_text_length is not None and length > config.max_text_length:
            return f"text of more than {config.max_text_length} characters: {length}"
        return ""

    def _of_image(self, encoded: bytes) -> str:
        if self._blocked and self._blocked.has_image(encoded):
            return "blocked image"
        if self._config.min_side is None and self._config.max_aspect_ratio is None:
            return ""
        try:
            width, height = image_size(encoded)
        except UnreadableImage:
            # Whoever decodes it says why.
            return ""
        config = self._config
        if config.min_side is not None and min(width, height) < config.min_side:
            return f"image with a side of less than {config.min_side} pixels: {width} x {height}"
        ratio = max(width, height) / min(width, height)
        if config.max_aspect_ratio is not None and ratio > config.max_aspect_ratio:
            return f"image longer than {config.max_aspect_ratio:g} times its shorter side: {width} x {height}"
        return ""

    def description(self) -> str:
        """All that is asked, on one line; empty if it is nothing."""
        default = asdict(CurationConfig())
        asked = {name: value for name, value in asdict(self._config).items() if value != default[name]}
        if self._blocked:
            asked["blocklist"] = self._blocked.fingerprint
        return json.dumps(asked, sort_keys=True) if asked else ""


def _number(row: Mapping[str, Any], column: str) -> float | None:
    """The number in a row, also of a text that is one; None if there is none."""
    found: Any = row
    for part in (column,) if column in row else column.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    try:
        value = float(found) if isinstance(found, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(value) else value
