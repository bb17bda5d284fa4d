"""What activities of gcompris have: objects that are added to scenes, parts of photographs, and described images."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from cm3leon_jax.errors import UserError
from examples.annotations.graphics import opened, rasterize
from examples.annotations.packages import Packages
from examples.annotations.resource_bundle import read_bundle

Box = tuple[int, int, int, int]

# A scene is rendered at this side, so that parts of it are sharp.
SCENE_SIDE = 1600
# In a scene of side 1, coordinates of an object are divided by these, and a size of 1 is a tenth.
_SCENE_WIDTH, _SCENE_HEIGHT, _UNIT = 1200, 1700, 0.1
_COORDINATES = re.compile(r"\{\s*x:\s*([\d.]+),\s*y:\s*([\d.]+),\s*r:\s*[\d.]+,\s*w:\s*([\d.]+),\s*h:\s*([\d.]+)\s*\}")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
# "x": 0.32 and "x" : "0.543".
_PART = re.compile(r'"pixmapfile"\s*:\s*"([^"]+)",\s*"x"\s*:\s*"?([\d.]+)"?,\s*"y"\s*:\s*"?([\d.]+)"?')
_BACKGROUND = re.compile(r'"pixmapfile"\s*:\s*"([^"]+)",\s*"type"\s*:\s*"SHAPE_BACKGROUND_IMAGE"')
_TITLE = re.compile(r"string instruction: qsTr\((.*?)\)\s*\n", re.DOTALL)
_FIELD = re.compile(r'"(title|text|image2)"\s*:\s*(?:qsTr\()?((?:"(?:[^"\\]|\\.)*"[\s+]*)+)')
_NUMBER_AT_END = re.compile(r"\d+$")

# The objects have no names in the package; these are what one sees, by scene and object.
OBJECT_NAMES: dict[tuple[int, int], str] = {
    **{(1, 1): "sun", (1, 2): "lemon", (1, 3): "paint"},
    **{(2, 1): "owl", (2, 2): "red flower", (2, 3): "zebra"},
    **{(3, 1): "cloud", (3, 2): "grass"},
    **{(4, 1): "bird", (4, 2): "window", (4, 3): "rock", (4, 4): "tree"},
    **{(5, 1): "bird", (5, 2): "stone", (5, 3): "white flowers", (5, 4): "bush"},
    **{(6, 1): "fir tree", (6, 2): "bird", (6, 3): "bird"},
    **{(7, 1): "cloud", (7, 2): "fallen leaves", (7, 3): "leaf"},
    **{(8, 1): "sunglasses", (8, 2): "white flower", (8, 3): "butterfly", (8, 4): "shoe", (8, 5): "apple"},
    **{(8, 6): "ball", (9, 1): "star", (9, 2): "star", (9, 3): "light on the water"},
    **{(10, 1): "grass", (10, 2): "grass", (10, 3): "tower", (10, 4): "door"},
}
_WITHOUT_ARTICLE = {"paint", "grass", "white flowers", "fallen leaves", "sunglasses", "light on the water"}


def with_article(name: str) -> str:
    if name in _WITHOUT_ARTICLE:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


@dataclass(frozen=True)
class SceneObject:
    """An object that can be added to a scene: its name, and its box in pixels of the scene."""

    name: str
    box: Box
    svg: bytes


@dataclass(frozen=True)
class Scene:
    """A scene of "photo_hunter"; `objects` are what one of the two images that are compared there has more."""

    number: int
    svg: bytes
    objects: tuple[SceneObject, ...]

    @cached_property
    def background(self) -> Image.Image:
        return rasterize(self.svg, SCENE_SIDE, SCENE_SIDE)

    def with_objects(self, objects: tuple[SceneObject, ...]) -> Image.Image:
        """The scene with some of its objects."""
        image = self.background.copy()
        for each in objects:
            left, top, right, bottom = each.box
            rendered = rasterize(each.svg, right - left, bottom - top)
            layer = Image.new("RGBA", image.size)
            layer.paste(rendered, (left, top))
            image.alpha_composite(layer)
        return image


def read_scenes(packages: Packages) -> list[Scene]:
    """The scenes of "photo_hunter". Raises a `UserError` if the bundle has another form."""
    files = _files(packages, "photo_hunter")
    script = _of(files, "photo_hunter.js", "photo_hunter").decode()
    dataset = script[script.find("var dataset") : script.find("var numberOfLevel")]
    scenes = []
    for number, level in enumerate(dataset.split('"coordinates"')[1:], start=1):
        objects = []
        for index, found in enumerate(_COORDINATES.findall(level), start=1):
            x, y, width, height = map(float, found)
            left, top = round(x / _SCENE_WIDTH * SCENE_SIDE), round(y / _SCENE_HEIGHT * SCENE_SIDE)
            size = [max(1, round(each * _UNIT * SCENE_SIDE)) for each in (width, height)]
            if (name := OBJECT_NAMES.get((number, index))) is not None:
                svg = _of(files, f"resource/photo{number}_{index}.svg", "photo_hunter")
                objects.append(SceneObject(name, (left, top, left + size[0], top + size[1]), svg))
        scenes.append(Scene(number, _of(files, f"resource/photo{number}.svg", "photo_hunter"), tuple(objects)))
    if not any(scene.objects for scene in scenes):
        raise UserError("photo_hunter.rcc has no scenes of the known form: take gcompris-qt-data 3.1")
    return scenes


@dataclass(frozen=True)
class Painting:
    """A painting or photograph of "details" with its title, and parts of it with their boxes in its pixels."""

    key: str
    title: str
    image: Image.Image
    parts: tuple[tuple[Image.Image, Box], ...]


def read_paintings(packages: Packages) -> Iterator[Painting]:
    """The paintings of "details". Raises a `UserError` if the bundle has another form."""
    files = _files(packages, "details")
    boards = sorted(name for name in files if "/board/" in name and name.endswith(".qml"))
    for board in boards:
        text = files[board].decode()
        title, background = _TITLE.search(text), _BACKGROUND.search(text)
        if title is None or background is None:
            continue
        image = opened(_of(files, background[1], "details"))
        parts = []
        for file, x, y in _PART.findall(text):
            part = opened(_of(files, file, "details"))
            # The center as fractions of the sides.
            left = round(float(x) * image.width - part.width / 2)
            top = round(float(y) * image.height - part.height / 2)
            parts.append((part, (left, top, left + part.width, top + part.height)))
        yield Painting(
            posixpath.basename(background[1]).partition("_background")[0], _text(title[1]), image, tuple(parts)
        )


@dataclass(frozen=True)
class Described:
    """A photograph or drawing with what it shows; `text` says more, and is empty where nothing does."""

    kind: str
    title: str
    text: str
    image: bytes


_EXPLORED = {
    "explore_farm_animals": "animal",
    "explore_world_animals": "animal",
    "explore_monuments": "monument",
    "explore_world_music": "music",
}
# The folders of "categorization" whose images are named after what they show.
_CATEGORIES = {"tools": "tool", "fishes": "fish", "monuments": "monument", "renewable": "source of energy"}


def read_explored(packages: Packages) -> Iterator[Described]:
    """Animals, monuments and music of the "explore" activities, with their texts."""
    for activity, kind in _EXPLORED.items():
        files = _files(packages, activity)
        for board in sorted(name for name in files if "/board/" in name and name.endswith(".qml")):
            found: dict[str, str] = {}
            for name, value in _FIELD.findall(files[board].decode()):
                found[name] = _text(value)
                if len(found) == 3:
                    file = found["image2"].rpartition(f"{activity}/")[2]
                    yield Described(kind, found["title"], found["text"], _of(files, file, activity))
                    found = {}


def read_categorized(packages: Packages) -> Iterator[Described]:
    """Tools, fishes, monuments and sources of energy of "categorization"."""
    files = _files(packages, "categorization")
    for name in sorted(files):
        folder, file = posixpath.split(name)
        stem, suffix = posixpath.splitext(file)
        if (kind := _CATEGORIES.get(posixpath.basename(folder))) and suffix == ".webp":
            words = re.findall("[A-Z]?[a-z]+", _NUMBER_AT_END.sub("", stem))
            yield Described(kind, " ".join(words).lower(), "", files[name])


def square(image: Image.Image, box: Box, margin: float) -> Box:
    """A square window around a box, `margin` times its longer side, within the image."""
    left, top, right, bottom = box
    side = min(round(margin * max(right - left, bottom - top)), *image.size)
    x, y = (
        min(max((start + stop - side) // 2, 0), size - side)
        for start, stop, size in zip((left, top), (right, bottom), image.size, strict=True)
    )
    return x, y, x + side, y + side


def _files(packages: Packages, activity: str) -> dict[str, bytes]:
    return read_bundle(packages.bundles / f"{activity}.rcc")


def _of(files: Mapping[str, bytes], ending: str, activity: str) -> bytes:
    """The file of a bundle whose path ends so."""
    found = next((files[name] for name in sorted(files) if name.endswith(f"/{ending}")), None)
    if found is None:
        raise UserError(f"{activity}.rcc has no file {ending}: take gcompris-qt-data 3.1")
    return found


def _text(literal: str) -> str:
    """The text of literals of JavaScript that are added to each other."""
    parts = (each.replace('\\"', '"').replace("\\'", "'").replace("\\n", " ") for each in _STRING.findall(literal))
    return " ".join("".join(parts).split())
