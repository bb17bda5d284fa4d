"""MMC4: web pages as sentences, to which images are assigned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from cm3leon_jax.data.sources.examples import BadRow, NamedImage, value_of
from cm3leon_jax.data.sources.interleaved import InterleavedSource, Segment
from cm3leon_jax.data.sources.json_lines import SUFFIXES, lines_of, parsed
from cm3leon_jax.data.sources.unchanged import UnreadableFile


class Mmc4(InterleavedSource):
    """`mmc4:PATH`: JSON lines, gzipped or zipped or not, with text_list and image_info; all its subsets.

    Images are known by image_name or raw_url. Several of a sentence stay in the order of image_info.
    """

    form = "JSON lines of MMC4"
    suffixes = SUFFIXES
    joint = " "

    def num_rows(self, file: str) -> int:
        found = 0
        try:
            for _ in lines_of(self.folder / file):
                found += 1
        except UnreadableFile as error:
            if not found:
                raise
            # What came is read.
            self.skipped.add(str(error), file, is_document=False)
        return found

    def rows(self, file: str, start: int) -> Iterator[Any]:
        return map(parsed, islice(lines_of(self.folder / file), start, None))

    def segments(self, file: str, number: int, row: Any) -> Sequence[Segment]:
        sentences, images = value_of(row, "text_list", list), value_of(row, "image_info", list)
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise BadRow("no text_list of the published form")
        _check_matrix(row.get("similarity_matrix"), len(images), len(sentences))
        of_sentence: list[list[Segment]] = [[] for _ in sentences]
        for image in images:
            index = value_of(image, "matched_text_index", int)
            if not 0 <= index < len(sentences):
                raise BadRow("matched_text_index out of range")
            of_sentence[index].append(self._image(image))
        is_before = self.corpus.interleaved.image_position == "before"
        found: list[Segment] = []
        for sentence, here in zip(sentences, of_sentence, strict=True):
            found += [*here, sentence] if is_before else [sentence, *here]
        return found

    def _image(self, image: Any) -> Segment:
        least = self.corpus.interleaved.min_similarity
        if least is not None:
            similarity = value_of(image, "matched_sim", int, float)
            if math.isnan(similarity) or similarity < least:
                return BadRow("image that is not similar enough")
        name, url = image.get("image_name"), image.get("raw_url")
        if not isinstance(name, str | None) or not isinstance(url, str | None):
            raise BadRow("no image_info of the published form")
        return NamedImage(url or "", name or "")


def _check_matrix(matrix: Any, num_images: int, num_sentences: int) -> None:
    """A `BadRow` where similarities are not those of these images and sentences, so that something has shifted."""
    if matrix is None:
        return
    is_fitting = isinstance(matrix, list) and len(matrix) == num_images
    if not is_fitting or not all(isinstance(row, list) and len(row) == num_sentences for row in matrix):
        raise BadRow("similarity_matrix of another shape")
