"""Localized Narratives as published: long captions of the images of other data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cm3leon_jax.data.sources.annotated import AnnotatedSource
from cm3leon_jax.data.sources.examples import Example, value_of
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.splits import split_in


class LocalizedNarratives(AnnotatedSource):
    """`localized_narratives:PATH`: JSON lines {dataset_id, image_id, caption, ...}, template `narrative`.

    The images of "mscoco_train2017" are looked for in train2017/, of "open_images_train" in train/, of others in
    images/ and in the folder itself. The traces of the mouse are not read.
    """

    form = "JSON lines of Localized Narratives"

    def examples(self) -> Iterator[Example | SkippedExample]:
        files = [name for name in self.files(".jsonl") if "narratives" in name or self.path.is_file()]
        if not files:
            raise self.other_form("there is no *narratives*.jsonl")
        for file in files:
            yield from self.each(self.read_json_lines(file), self._example)

    def _example(self, where: str, split: str | None, row: Any) -> Iterator[Example]:
        dataset, number = value_of(row, "dataset_id", str), value_of(row, "image_id", str)
        # A subset is "train2017" or "validation"; Flickr30k has none.
        subset = dataset.rpartition("_")[2]
        folders = (subset, f"images/{subset}", "images", "flickr30k-images", "")
        is_coco = dataset.startswith("mscoco") and number.isdigit()
        image = self.image(f"{int(number):012d}.jpg" if is_coco else f"{number}.jpg", *folders)
        values = {"caption": value_of(row, "caption", str), "image": image}
        yield Example(where, "narrative", values, image.file, split_in(dataset) or split)
