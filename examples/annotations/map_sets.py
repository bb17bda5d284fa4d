"""Data sets of maps, as COCO, VQAv2, Localized Narratives and GRIT are published; of capitals as LLaVA's is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from examples.annotations import published
from examples.annotations.colors import COLORS
from examples.annotations.graphics import as_image, jpeg, png
from examples.annotations.map_texts import QUESTION_TYPES, caption, grounded_caption, narrative, questions
from examples.annotations.maps import RegionMap, View, Visible, read_maps, rectangles, views
from examples.annotations.packages import Packages

# How much of a map is around a region in a view, as a multiple of its longer side.
_CLOSE, _WIDE = 1.3, 3.0
_QUESTIONS_PER_VIEW = 3
# What a held-out request asks for is at least this fraction of the image.
_LEAST_REQUESTED = 0.06
SPLITS = ("train", "val")


def write_maps(packages: Packages, output: Path, resolution: int) -> None:
    """The folders coco, map_questions, narratives, grit and capitals, and held_out/objects.jsonl."""
    maps: dict[str, list[RegionMap]] = {split: [] for split in SPLITS}
    for each in read_maps(packages.maps):
        maps[SPLITS[published.is_held_out(each.country)]].append(each)
    for split, of_split in maps.items():
        close = [view for each in of_split for view in views(each, _CLOSE)]
        write_coco(close, split, output / "coco")
        write_questions(close, split, output / "map_questions")
        if split == "val":
            write_object_prompts(close, output, resolution)
        del close
        wide = [view for each in of_split for view in views(each, _WIDE)]
        write_narratives(wide, split, output / "narratives")
        write_grit(wide, split, output / "grit")
        write_capitals(of_split, split, output / "capitals")


def write_coco(found: Sequence[View], split: str, folder: Path) -> None:
    """annotations/{captions,instances}_train2017.json and train2017/: regions by the names of their colors.

    A region whose color has no name is not annotated, as what is of no class in COCO.
    """
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for number, view in _numbered(found):
        name = _coco_name(number)
        published.write_bytes(folder / f"{split}2017" / name, png(as_image(view.pixels)))
        images.append({"id": number, "file_name": name, "width": view.side, "height": view.side})
        captions.append({"id": number, "image_id": number, "caption": caption(view)})
        for each in view.named:
            instances.append({"id": len(instances) + 1, "image_id": number, **_instance(each)})
    categories = [{"id": index, "name": f"{color} region"} for index, color in enumerate(COLORS, start=1)]
    classes = {"categories": [{**each, "supercategory": "region"} for each in categories]}
    for name, content in (
        ("captions", {"annotations": captions}),
        ("instances", {"annotations": instances, **classes}),
    ):
        published.write_json(folder / "annotations" / f"{name}_{split}2017.json", {"images": images, **content})


def _numbered(found: Sequence[View]) -> Iterator[tuple[int, View]]:
    """The views that something is annotated in, with the numbers of their images."""
    return enumerate((each for each in found if each.named), start=1)


def _coco_name(number: int) -> str:
    return f"{number:012d}.png"


def _instance(region: Visible) -> dict[str, Any]:
    left, top, right, bottom = region.box
    return {
        "category_id": 1 + COLORS.index(str(region.color)),
        "segmentation": rectangles(region.mask),
        "area": int(region.mask.sum()),
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }


def write_questions(found: Sequence[View], split: str, folder: Path) -> None:
    """Questions and annotations of VQAv2, images in train2014/; ids/TYPE.txt names the held-out ones of each type."""
    subset = f"{split}2014"
    asked: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ids: dict[str, list[int]] = {type: [] for type in QUESTION_TYPES}
    for image, view in enumerate(found, start=1):
        if not (of_view := questions(view)[:_QUESTIONS_PER_VIEW]):
            continue
        file = folder / subset / f"COCO_{subset}_{image:012d}.jpg"
        published.write_bytes(file, jpeg(as_image(view.pixels)))
        for number, question in enumerate(of_view):
            name = {"question_id": 10 * image + number, "image_id": image}
            ids[question.type].append(name["question_id"])
            asked.append({**name, "question": question.text})
            # That of one who knows the colors of all pixels.
            answers = [{"answer_id": 1, "answer": question.answer, "answer_confidence": "yes"}]
            kind = {"yes": "yes/no", "no": "yes/no"}.get(question.answer, "other")
            more = {"question_type": question.type, "answer_type": kind, "multiple_choice_answer": question.answer}
            annotations.append({**name, **more, "answers": answers})
    header = {"data_type": "mscoco", "data_subtype": subset}
    files = {
        f"v2_OpenEnded_mscoco_{subset}_questions.json": {**header, "questions": asked},
        f"v2_mscoco_{subset}_annotations.json": {**header, "annotations": annotations},
    }
    for file_name, content in files.items():
        published.write_json(folder / file_name, content)
    if split == "val":
        for type, of_type in ids.items():
            published.write_bytes(folder / "ids" / f"{type}.txt", "".join(f"{each}\n" for each in of_type).encode())


def write_narratives(found: Sequence[View], split: str, folder: Path) -> None:
    """JSON lines of Localized Narratives for images as Open Images names them; nobody's mouse traced anything."""
    lines = []
    for view in found:
        name = f"{published.hashed('narrative', view.key):016x}"
        published.write_bytes(folder / split / f"{name}.jpg", jpeg(as_image(view.pixels)))
        more = {"annotator_id": 0, "caption": narrative(view), "timed_caption": [], "traces": []}
        lines.append({"dataset_id": f"open_images_{split}", "image_id": name, **more})
    published.write_json_lines(folder / f"open_images_{split}_localized_narratives-00000-of-00001.jsonl", lines)


def write_grit(found: Sequence[View], split: str, folder: Path) -> None:
    """00000.parquet beside 00000.tar, in a folder for each split: names of regions in captions, with their boxes."""
    rows, members = [], []
    for number, view in enumerate(found):
        text, phrases = grounded_caption(view)
        spans = [[each.start, each.end, *(bound / view.side for bound in each.region.box), 1.0] for each in phrases]
        key = f"{number:09d}"
        size = {"width": view.side, "height": view.side}
        rows.append({"key": key, "caption": text, **size, "noun_chunks": spans, "ref_exps": spans, "status": "success"})
        members.append((f"{key}.jpg", jpeg(as_image(view.pixels))))
    columns = {"key": "text", "caption": "text", "width": "number", "height": "number"}
    columns |= {"noun_chunks": "phrases", "ref_exps": "phrases", "status": "text"}
    published.write_table(folder / split / "00000.parquet", rows, columns)
    published.write_tar(folder / split / "00000.tar", members)


def write_capitals(maps: Sequence[RegionMap], split: str, folder: Path) -> None:
    """Conversations of LLaVA without an image, one for each region whose capital is known."""
    entries = []
    for each in maps:
        for region in each.regions:
            if region.capital:
                question = f"What is the capital of {region.name} in {each.name}?"
                turns = [{"from": "human", "value": question}, {"from": "gpt", "value": region.capital}]
                entries.append({"id": f"{each.key}/{region.name}", "conversations": turns})
    published.write_json(folder / f"capitals_{split}.json", entries)


def write_object_prompts(found: Sequence[View], output: Path, resolution: int) -> None:
    """held_out/objects.jsonl: held-out regions that their colors tell apart, with boxes in pixels of a resolution."""
    lines = []
    for number, view in _numbered(found):
        wanted = view.unique(_LEAST_REQUESTED)
        boxes = [[round(bound * resolution / view.side) for bound in each.box] for each in wanted]
        objects = [{"name": f"{each.color} region", "box": box} for each, box in zip(wanted, boxes, strict=True)]
        if len(objects) > 1:
            target = f"../coco/val2017/{_coco_name(number)}"
            lines.append({"id": view.key, "prompt": caption(view), "objects": objects, "target": target})
    published.write_json_lines(output / "held_out" / "objects.jsonl", lines)
