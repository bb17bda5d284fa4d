"""COCO captions as published, and in Karpathy's splits: prompts for images, or images to caption."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cm3leon_jax.evaluation.sets.base import Item, field_of, read_json
from cm3leon_jax.ranges import OneOf


@dataclass(frozen=True)
class CocoCaptions:
    """captions_val2014.json and the like: {"images": [{id, file_name}], "annotations": [{id, image_id, caption}]}.

    As prompts each annotation is an item, by the annotation's id; as images to caption each image, by the image's.
    """

    annotations: str
    images: str
    task: Annotated[str, OneOf("text_to_image", "caption")] = "text_to_image"

    @property
    def files(self) -> list[str]:
        return [self.annotations]

    def __call__(self) -> list[Item]:
        content, file = read_json(self.annotations), self.annotations
        names = {
            field_of(image, "id", int, f"an image of {file}"): field_of(image, "file_name", str, f"an image of {file}")
            for image in field_of(content, "images", list, file)
        }
        captions: dict[int, list[tuple[int, str]]] = {image: [] for image in names}
        for number, annotation in enumerate(field_of(content, "annotations", list, file)):
            where = f"annotation {number} of {file}"
            image = field_of(annotation, "image_id", int, where)
            of_image = captions.setdefault(image, [])
            of_image.append((field_of(annotation, "id", int, where), field_of(annotation, "caption", str, where)))
        return [
            item
            for image, of_image in captions.items()
            if image in names and of_image
            for item in _items(self.task, str(image), Path(self.images) / names[image], of_image)
        ]


@dataclass(frozen=True)
class Karpathy:
    """dataset_coco.json: {"images": [{split, filepath, filename, cocoid, sentences: [{sentid, raw}]}]}."""

    file: str
    images: str
    split: str = "test"
    task: Annotated[str, OneOf("text_to_image", "caption")] = "caption"

    @property
    def files(self) -> list[str]:
        return [self.file]

    def __call__(self) -> list[Item]:
        items: list[Item] = []
        for number, image in enumerate(field_of(read_json(self.file), "images", list, self.file)):
            where = f"image {number} of {self.file}"
            if field_of(image, "split", str, where) != self.split:
                continue
            folder = Path(self.images) / field_of(image, "filepath", str, where, default="")
            path = folder / field_of(image, "filename", str, where)
            sentences = [
                (field_of(sentence, "sentid", int, where), field_of(sentence, "raw", str, where))
                for sentence in field_of(image, "sentences", list, where)
            ]
            items += _items(self.task, str(field_of(image, "cocoid", int, where)), path, sentences)
        return items


def _items(task: str, image: str, path: Path, captions: list[tuple[int, str]]) -> list[Item]:
    texts = tuple(text for _, text in captions)
    if task == "caption":
        return [Item(image, {"task": "caption", "image": str(path)}, texts, path)]
    return [Item(str(caption), {"prompt": text.strip()}, texts, path) for caption, text in captions]
