"""COCO's annotations as published: captions, boxes of objects, and outlines of objects as segmentation maps."""

from __future__ import annotations

import abc
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from cm3leon_jax.data.sources.annotated import AnnotatedSource, Row
from cm3leon_jax.data.sources.boxes import Number, needed, objects_field
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference, Values, value_of
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.splits import split_in
from cm3leon_jax.data.sources.structure_maps import map_options

# Pixels from an image's corner at which no outline is any more.
_FARTHEST = 1e5

# {image id: [annotation, ...]}
_ByImage = Mapping[int, list[dict[str, Any]]]


class CocoAnnotations(AnnotatedSource):
    """A folder with annotations/PREFIX_train2017.json, and the images in train2017/ or images/train2017/."""

    # How the names of its files begin.
    prefix: ClassVar[str]

    def examples(self) -> Iterator[Example | SkippedExample]:
        files = self.files(".json")
        if self.path.is_dir():
            files = [name for name in files if name.rpartition("/")[2].startswith(self.prefix)]
        if not files:
            raise self.other_form(f"there is no {self.prefix}*.json, such as annotations/{self.prefix}_train2017.json")
        for file in files:
            content = self.read_json(file)
            try:
                images, annotations = (value_of(content, name, list) for name in ("images", "annotations"))
            except BadRow as error:
                raise self.other_form(f"{file} has {error}") from None
            by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for annotation in annotations:
                if isinstance(annotation, dict) and isinstance(number := annotation.get("image_id"), int):
                    by_image[number].append(annotation)
            yield from self._unnamed(file, by_image, images)
            rows = ((f"{file}:{number}", split_in(file), image) for number, image in enumerate(images))
            yield from self._of_images(file, content, rows, by_image)

    def _unnamed(self, file: str, by_image: _ByImage, images: list[Any]) -> Iterator[SkippedExample]:
        known = {str(image.get("id")) for image in images if isinstance(image, dict)}
        for image in by_image:
            if str(image) not in known:
                yield SkippedExample("annotation of an image that is not listed", f"{file}, image {image}")

    @abc.abstractmethod
    def _of_images(
        self, file: str, content: Any, rows: Iterator[Row], by_image: _ByImage
    ) -> Iterator[Example | SkippedExample]:
        """The examples of the images of a file."""

    def _image(self, file: str, image: Any) -> tuple[ImageReference, int]:
        """An image and its number."""
        # "train2017" of captions_train2017.json.
        name, folder = value_of(image, "file_name", str), file.rpartition("/")[2].removesuffix(".json").split("_")[-1]
        return self.image(name, folder, f"images/{folder}", "images", ""), value_of(image, "id", int)

    def _captions(self, file: str) -> dict[int, str]:
        """The first caption of each image, from captions_*.json beside a file of instances."""
        beside = file.replace("instances", "captions")
        if beside == file or not (self.folder / beside).is_file():
            return {}
        found: dict[int, str] = {}
        for entry in self.read_json(beside).get("annotations", []):
            found.setdefault(value_of(entry, "image_id", int), value_of(entry, "caption", str))
        return found


class CocoCaptioned(CocoAnnotations):
    """`coco_captions:PATH`: every caption of an image is an instruction of the template `caption`."""

    form, prefix = "captions of COCO", "captions"

    def _of_images(
        self, file: str, content: Any, rows: Iterator[Row], by_image: _ByImage
    ) -> Iterator[Example | SkippedExample]:
        for where, split, row in rows:
            number = row.get("id") if isinstance(row, dict) else None
            found = by_image.get(number, []) if isinstance(number, int) else []
            if not found:
                yield SkippedExample("image without a caption", where)
                continue

            def captioned(where: str, split: str | None, caption: Any, row: Any = row) -> Iterator[Example]:
                image, number = self._image(file, row)
                values: Values = {"caption": value_of(caption, "caption", str), "image": image}
                yield Example(where, "caption", values, str(number), split)

            captions = ((f"{where}, caption {number}", split, caption) for number, caption in enumerate(found))
            yield from self.each(captions, captioned)


class CocoObjects(CocoAnnotations):
    """`coco_objects:PATH`: the objects of an image with their boxes, template `objects`.

    The caption is the first of captions_*.json beside, or else the names of the objects.
    """

    form, prefix = "instances of COCO", "instances"

    def _of_images(
        self, file: str, content: Any, rows: Iterator[Row], by_image: _ByImage
    ) -> Iterator[Example | SkippedExample]:
        names = _class_names(content)
        captions = self._captions(file)
        resolution = needed(self.corpus.annotations.resolution, self.what)
        most = self.corpus.annotations.max_objects

        def placed(where: str, split: str | None, row: Any) -> Iterator[Example]:
            image, number = self._image(file, row)
            size = value_of(row, "width", int, float), value_of(row, "height", int, float)
            # A crowd has one box around all.
            found = [each for each in by_image.get(number, []) if not each.get("iscrowd")]
            objects = [(names.get(each.get("category_id", -1), ""), _corners(each)) for each in found]
            field = objects_field(objects, *size, resolution, self.corpus.squaring, most)
            caption = captions.get(number) or ", ".join(dict.fromkeys(name for name, _ in objects if name))
            yield Example(where, "objects", {"caption": caption, "objects": field, "image": image}, str(number), split)

        yield from self.each(rows, placed)


class CocoSegmentation(CocoAnnotations):
    """`coco_segmentation:PATH`: the outlines of an image's objects in the colors of their classes.

    The template is `segmentation`; the caption that of `coco_objects`.
    """

    form, prefix = "instances of COCO", "instances"

    def _of_images(
        self, file: str, content: Any, rows: Iterator[Row], by_image: _ByImage
    ) -> Iterator[Example | SkippedExample]:
        names, captions = _class_names(content), self._captions(file)
        resolution = needed(self.corpus.annotations.resolution, self.what)

        def segmented(where: str, split: str | None, row: Any) -> Iterator[Example]:
            image, number = self._image(file, row)
            width, height = value_of(row, "width", int, float), value_of(row, "height", int, float)
            areas = sorted(map(_area, by_image.get(number, [])), reverse=True)
            outlines = [(category, polygons) for _, category, polygons in areas if polygons]
            if not outlines or not (width > 0 and height > 0):
                raise BadRow("image without outlines")
            image_file = {"width": width, "height": height, "outlines": outlines}
            options = map_options(resolution, self.corpus.squaring, **image_file)
            classes = dict.fromkeys(names.get(category, "") for category, _ in outlines)
            caption = captions.get(number) or ", ".join(filter(None, classes))
            structure = ImageReference(image.file, structure="segmentation", options=options)
            values: Values = {"structure": structure, "caption": caption, "image": image}
            yield Example(where, "segmentation", values, str(number), split)

        yield from self.each(rows, segmented)


def _class_names(content: Any) -> dict[int, str]:
    """The names of the classes by their numbers, among which there are gaps."""
    found = content.get("categories", [])
    return {each["id"]: str(each["name"]) for each in found if isinstance(each, dict) and {"id", "name"} <= set(each)}


def _corners(annotation: dict[str, Any]) -> tuple[Number, Number, Number, Number]:
    box = value_of(annotation, "bbox", list)
    if len(box) != 4 or not all(isinstance(each, int | float) for each in box):
        raise BadRow("no bbox of the published form")
    left, top, width, height = box
    return left, top, left + width, top + height


def _area(annotation: dict[str, Any]) -> tuple[Number, int, list[list[Number]]]:
    """The size, the class and the polygons of an annotation; those of a crowd are run lengths, and not read."""
    listed = annotation.get("segmentation")
    polygons = [each for each in listed if _is_polygon(each)] if isinstance(listed, list) else []
    return value_of(annotation, "area", int, float), value_of(annotation, "category_id", int), polygons


def _is_polygon(points: Any) -> bool:
    is_list = isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0
    return is_list and all(isinstance(each, int | float) and abs(each) < _FARTHEST for each in points)
