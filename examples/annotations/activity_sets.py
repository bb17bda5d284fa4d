"""Data sets of activities: scenes as MagicBrush and GRIT are published, conversations, problems, and photographs."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from examples.annotations import published
from examples.annotations.activities import (
    Box,
    Described,
    Painting,
    Scene,
    SceneObject,
    read_categorized,
    read_explored,
    read_paintings,
    read_scenes,
    square,
    with_article,
)
from examples.annotations.graphics import on_white, png
from examples.annotations.map_texts import enumerated, location
from examples.annotations.packages import Packages
from examples.annotations.published import cell, chosen, is_held_out, shuffled, table_file

_SIDE = 96
# Windows around an object of a scene, as multiples of its longer side.
_WINDOWS = (1.5, 2.0, 2.5, 3.0, 4.0)
_ADD_WORDINGS = ("add {thing} {location}", "put {thing} {location}", "there should be {thing} {location}")
_REMOVE_WORDINGS = ("remove the {name} {location}", "take the {name} {location} away", "erase the {name} {location}")
_FILL_WORDINGS = ("fill the gray rectangle", "restore the missing part", "complete the image")
_GRAY = (128, 128, 128)
_NUM_CHOICES = 4
# There are only ten.
_HELD_OUT_SCENES = (4, 9)
# Objects whose longer side is a smaller fraction of a scene's cannot be seen in the whole of it.
_LEAST_GROUNDED, _SCENE_SIDE = 0.05, 256


def write_activities(packages: Packages, output: Path) -> None:
    """The folders scene_edits, scene_grit, parts, restored, conversations, problems and photographs."""
    scenes, paintings = read_scenes(packages), list(read_paintings(packages))
    explored, categorized = list(read_explored(packages)), list(read_categorized(packages))
    for split in ("train", "val"):
        of_split = [each for each in scenes if (each.number in _HELD_OUT_SCENES) == (split == "val")]
        write_scene_edits(of_split, split, output / "scene_edits")
        write_scene_grit(of_split, split, output / "scene_grit")
        shown = [each for each in paintings if is_held_out(each.key) == (split == "val")]
        write_parts(shown, split, output / "parts")
        write_restored(shown, split, output / "restored")
        described = [each for each in explored if is_held_out(each.title) == (split == "val")]
        write_conversations(described, split, output / "conversations")
        write_photographs([*described, *_wanted(categorized, split)], split, output / "photographs")
    write_problems(explored, categorized, output / "problems")


def _wanted(found: Sequence[Described], split: str) -> list[Described]:
    """Those of a split; of several images with one name, such as "hammer", each is on its own."""
    names = [f"{each.title} {published.hashed(each.image.hex())}" for each in found]
    return [each for each, name in zip(found, names, strict=True) if is_held_out(name) == (split == "val")]


def _window(image: Image.Image, window: Box) -> Image.Image:
    """A square part of an image, on white."""
    return on_white(image.crop(window), _SIDE)


def _where(box: Box, window: Box) -> str:
    side = window[2] - window[0]
    return location(*(((box[axis] + box[axis + 2]) / 2 - window[axis]) / side for axis in (0, 1)))


def _windows(scene: Scene) -> Iterator[tuple[SceneObject, Box, str]]:
    """Each object in windows of several sizes, with a name for the window."""
    for number, each in enumerate(scene.objects, start=1):
        for size, margin in enumerate(_WINDOWS, start=1):
            window = square(scene.background, each.box, margin)
            if _is_inside(each.box, window):
                yield each, window, f"{scene.number}{number}{size}"


def _is_inside(box: Box, window: Box) -> bool:
    return window[0] <= box[0] and window[1] <= box[1] and box[2] <= window[2] and box[3] <= window[3]


def write_scene_edits(scenes: Sequence[Scene], split: str, folder: Path) -> None:
    """MagicBrush's edit_turns.json beside images/ID/: an object is added, then taken away, or the other way round."""
    turns: list[dict[str, str]] = []
    for scene in scenes:
        for each, window, name in _windows(scene):
            without, added = (_window(scene.with_objects(objects), window) for objects in ((), (each,)))
            order = ["remove", "add"] if published.hashed("order", name) % 2 else ["add", "remove"]
            states = [without if order[0] == "add" else added]
            for kind in order:
                states.append(added if kind == "add" else without)
            images = folder / split / "images" / name
            files = [f"{name}-input.png", *(f"{name}-output{turn}.png" for turn in (1, 2))]
            for file, image in zip(files, states, strict=True):
                published.write_bytes(images / file, png(image))
            for turn, kind in enumerate(order, start=1):
                mask = f"{name}-mask{turn}.png"
                published.write_bytes(images / mask, png(_mask(each.box, window)))
                fields = {"thing": with_article(each.name), "name": each.name, "location": _where(each.box, window)}
                wordings = _ADD_WORDINGS if kind == "add" else _REMOVE_WORDINGS
                instruction = chosen(wordings, "scene", name, kind).format(**fields)
                paths = {"input": files[turn - 1], "mask": mask, "output": files[turn]}
                turns.append({**paths, "instruction": instruction})
    published.write_json(folder / split / "edit_turns.json", turns)


def _mask(box: Box, window: Box) -> Image.Image:
    """White where a box is in a window."""
    mask = Image.new("RGB", (window[2] - window[0],) * 2, "black")
    mask.paste((255, 255, 255), (box[0] - window[0], box[1] - window[1], box[2] - window[0], box[3] - window[1]))
    return on_white(mask, _SIDE)


def write_scene_grit(scenes: Sequence[Scene], split: str, folder: Path) -> None:
    """GRIT in a folder of images: scenes with all but one of their objects, or with all, which the caption names."""
    rows: list[dict[str, Any]] = []
    for scene in scenes:
        sizes = ((each, max(each.box[2] - each.box[0], each.box[3] - each.box[1])) for each in scene.objects)
        named = tuple(each for each, size in sizes if size >= _LEAST_GROUNDED * scene.background.width)
        subsets = [named, *(tuple(each for each in named if each is not absent) for absent in named)]
        for number, objects in enumerate(subsets):
            if not objects:
                continue
            key = f"{scene.number:04d}{number:05d}"
            names = [with_article(each.name) for each in objects]
            caption, spans, position = f"An image with {enumerated(names)}", [], 0
            for name, each in zip(names, objects, strict=True):
                position = caption.index(name, position)
                box = [bound / scene.background.width for bound in each.box]
                spans.append([position, position + len(name), *box, 1.0])
                position += len(name)
            image = on_white(scene.with_objects(objects), _SCENE_SIDE)
            published.write_bytes(folder / split / "00000" / f"{key}.png", png(image))
            size = {"width": _SCENE_SIDE, "height": _SCENE_SIDE}
            rows.append({"key": key, "caption": caption, **size, "noun_chunks": spans, "ref_exps": spans})
    columns = {"key": "text", "caption": "text", "width": "number", "height": "number"}
    columns |= {"noun_chunks": "phrases", "ref_exps": "phrases"}
    published.write_table(folder / split / "00000.parquet", rows, columns)


def write_parts(paintings: Sequence[Painting], split: str, folder: Path) -> None:
    """the_cauldron: what a painting is, and where in it a part is, for which there are two images."""
    rows: list[dict[str, Any]] = []
    for each in paintings:
        whole = cell(_photograph(each.image), f"{each.key}.png")
        source = {"source": "details"}
        rows.append(
            {"images": [whole], "texts": [{"user": "What does the image show?", "assistant": each.title, **source}]}
        )
        for number, (part, box) in enumerate(each.parts):
            center = ((box[0] + box[2]) / 2 / each.image.width, (box[1] + box[3]) / 2 / each.image.height)
            pair = {"user": "Where in the first image is the second?", "assistant": location(*center), **source}
            rows.append({"images": [whole, cell(_photograph(part), f"{each.key}_{number}.png")], "texts": [pair]})
    published.write_table(table_file(folder, split), rows, {"images": "images", "texts": "pairs"})


def _photograph(image: Image.Image) -> bytes:
    """The whole of an image in a square, white around it, so that no crop takes anything away."""
    side = max(image.size)
    padded = Image.new("RGBA", (side, side), "white")
    padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return png(on_white(padded, _SIDE))


def write_restored(paintings: Sequence[Painting], split: str, folder: Path) -> None:
    """UltraEdit: windows of paintings, a part of which is gray and to be filled in."""
    rows: list[dict[str, Any]] = []
    for each in paintings:
        for number, (_, box) in enumerate(each.parts):
            damaged = each.image.copy()
            damaged.paste(_GRAY, box)
            mask = Image.new("RGB", each.image.size, "black")
            mask.paste("white", box)
            window = square(each.image, box, 2.5)
            name = f"{each.key}_{number}"
            rows.append(
                {
                    "source_caption": f"{each.title} (part {number + 1})",
                    "target_caption": each.title,
                    "edit_prompt": chosen(_FILL_WORDINGS, "restored", name),
                    "source_image": cell(png(_window(damaged, window)), f"{name}-source.png"),
                    "edited_image": cell(png(_window(each.image, window)), f"{name}.png"),
                    "mask_image": cell(png(_window(mask, window)), f"{name}-mask.png"),
                }
            )
    columns = dict.fromkeys(("source_caption", "target_caption", "edit_prompt"), "text")
    columns |= dict.fromkeys(("source_image", "edited_image", "mask_image"), "image")
    published.write_table(table_file(folder, split), rows, columns)


def write_conversations(explored: Sequence[Described], split: str, folder: Path) -> None:
    """LLaVA: what is it, and what is there to say of it."""
    entries = []
    for number, each in enumerate(explored):
        name = f"{split}_{number:03d}.png"
        published.write_bytes(folder / "images" / name, _described(each))
        turns = [("human", "<image>\nWhat does the image show?"), ("gpt", each.title)]
        turns += [("human", "Tell me more about it."), ("gpt", each.text)]
        conversations = [{"from": speaker, "value": text} for speaker, text in turns]
        entries.append({"id": name.removesuffix(".png"), "image": name, "conversations": conversations})
    published.write_json(folder / f"conversations_{split}.json", entries)


def write_problems(explored: Sequence[Described], categorized: Sequence[Described], folder: Path) -> None:
    """ScienceQA's problems.json beside images/SPLIT/ID/: which of four it is, or which kind of thing."""
    titles: dict[str, list[str]] = defaultdict(list)
    for each in explored:
        titles[each.kind] += [each.title] if each.title not in titles[each.kind] else []
    problems: dict[str, dict[str, Any]] = {}

    def add(each: Described, question: str, choices: Sequence[str], answer: str, is_val: bool) -> None:
        name, split = str(len(problems) + 1), "val" if is_val else "train"
        published.write_bytes(folder / "images" / split / name / "image.png", _described(each))
        problems[name] = {
            "question": question,
            "choices": list(choices),
            "answer": list(choices).index(answer),
            "hint": "",
            "image": "image.png",
            "solution": each.text,
            "split": split,
        }

    for each in explored:
        others = [title for title in shuffled(titles[each.kind], "choices", each.title) if title != each.title]
        choices = shuffled([each.title, *others[: _NUM_CHOICES - 1]], "order", each.title)
        add(each, "What does the image show?", choices, each.title, is_held_out(each.title))
    kinds = sorted({each.kind for each in categorized})
    for each in categorized:
        is_val = each in _wanted([each], "val")
        add(each, "What kind of thing is it?", kinds, each.kind, is_val)
    published.write_json(folder / "problems.json", problems)


def write_photographs(found: Sequence[Described], split: str, folder: Path) -> None:
    """A folder of captioned images: X.png beside X.txt."""
    for number, each in enumerate(found):
        published.write_bytes(folder / split / f"{number:03d}.png", _described(each))
        published.write_bytes(folder / split / f"{number:03d}.txt", each.title.encode())


def _described(each: Described) -> bytes:
    image = on_white(Image.open(io.BytesIO(each.image)))
    return png(_window(image, square(image, (0, 0, *image.size), 1.0)))
