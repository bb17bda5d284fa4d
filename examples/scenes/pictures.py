"""Scenes: a sky, a ground and one to four emoji at known positions, as values and as images of 32 pixels.

A scene belongs to exactly one split. Of every tenth combination of a sky and kinds of objects no scene is in training,
whatever their positions ("validation"); and every fourth kind is never seen in training with one of the skies, alone or
among others ("new_pairs"). Neither depends on the seed, or on how many kinds there are.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from cm3leon_jax.counter_random import generator
from cm3leon_jax.errors import UserError
from examples.emoji import images as emoji

T = TypeVar("T")

SPLITS = ("train", "validation", "new_pairs")

# In pixels. Objects stand at multiples of a cell, which is what one code of the image tokenizer covers.
SIDE, CELL, OBJECT_SIDE, HORIZON = 32, 4, 12, 20
# Rows, and columns, that the top left cell of an object can have; and objects closer than this in both overlap.
NUM_POSITIONS = (SIDE - OBJECT_SIDE) // CELL + 1
_CELLS_PER_OBJECT = OBJECT_SIDE // CELL
MOST_OBJECTS = 4

SKIES = {
    "bright blue": (64, 156, 255),
    "dark blue": (32, 40, 110),
    "pink": (255, 165, 200),
    "orange": (250, 150, 60),
    "purple": (130, 75, 190),
    "gray": (150, 155, 160),
}
GROUNDS = {"green": (85, 165, 65), "brown": (135, 90, 55), "yellow": (225, 210, 130)}

# In an order in which the first n are easy to tell apart, by the distance of `judge`. None is named as a color is.
KINDS = {
    **{"panda": "🐼", "magnet": "🧲", "mushroom": "🍄", "camera": "📷", "rose": "🌹", "shell": "🐚", "parrot": "🦜"},
    **{"shoe": "👟", "drum": "🥁", "train": "🚂", "lamp": "💡", "strawberry": "🍓", "snail": "🐌", "globe": "🌍"},
    **{"ball": "⚽", "book": "📕", "rocket": "🚀", "chicken": "🐔", "truck": "🚚", "fox": "🦊", "tree": "🌳"},
    **{"bottle": "🍼", "lemon": "🍋", "penguin": "🐧", "gift": "🎁", "avocado": "🥑", "bee": "🐝", "car": "🚗"},
    **{"dress": "👗", "tractor": "🚜", "castle": "🏰", "sunflower": "🌻", "snowman": "⛄", "pear": "🍐", "box": "📦"},
    **{"tulip": "🌷", "pumpkin": "🎃", "lion": "🦁", "frog": "🐸", "star": "⭐"},
}

_HELD_OUT_FRACTION = 0.1
# One kind of so many is never seen in training with one of the skies.
_KINDS_PER_NEW_PAIR = 4
# How often an object is of the kind of one before it: enough for questions whose answer is "two" and "three".
_REPEAT_FRACTION = 0.4


@dataclass(frozen=True)
class SceneConfig:
    """What scenes are made of."""

    # The first so many of `KINDS`.
    num_kinds: int = 20
    most_objects: int = MOST_OBJECTS

    def __post_init__(self) -> None:
        if not MOST_OBJECTS < self.num_kinds <= len(KINDS):
            raise UserError(f"scenes: num_kinds is {self.num_kinds}: {MOST_OBJECTS + 1} to {len(KINDS)} kinds")
        if not 1 <= self.most_objects <= MOST_OBJECTS:
            raise UserError(f"scenes: most_objects is {self.most_objects}: 1 to {MOST_OBJECTS} objects have room")

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(KINDS)[: self.num_kinds]


@dataclass(frozen=True, order=True)
class SceneObject:
    """An object and its top left cell; sorted, objects are in the order in which codes are sampled, row by row."""

    row: int
    column: int
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"a scene: there is no emoji for {self.kind!r}: one of {', '.join(KINDS)}")
        if not (0 <= self.row < NUM_POSITIONS and 0 <= self.column < NUM_POSITIONS):
            raise UserError(
                f"a scene: the {self.kind} at row {self.row}, column {self.column} is not inside the image: "
                f"0 to {NUM_POSITIONS - 1}"
            )

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in pixels."""
        left, top = CELL * self.column, CELL * self.row
        return left, top, left + OBJECT_SIDE, top + OBJECT_SIDE


@dataclass(frozen=True)
class Scene:
    """A sky, a ground and objects that do not overlap, row by row."""

    sky: str
    ground: str
    objects: tuple[SceneObject, ...]

    def __post_init__(self) -> None:
        for name, value, colors in (("sky", self.sky, SKIES), ("ground", self.ground, GROUNDS)):
            if value not in colors:
                raise UserError(f"a scene: the {name} is {value!r}: one of {', '.join(colors)}")
        for one, two in itertools.combinations(self.objects, 2):
            if overlap(one, two):
                raise UserError(
                    f"a scene: the {one.kind} at {one.box} and the {two.kind} at {two.box} overlap: keep "
                    f"{OBJECT_SIDE} pixels between their corners"
                )
        object.__setattr__(self, "objects", tuple(sorted(self.objects)))

    @property
    def counts(self) -> Counter[str]:
        """How many objects there are of each kind."""
        return Counter(each.kind for each in self.objects)


def overlap(one: SceneObject, two: SceneObject) -> bool:
    """Whether the boxes of two objects share a pixel."""
    return abs(one.row - two.row) < _CELLS_PER_OBJECT and abs(one.column - two.column) < _CELLS_PER_OBJECT


def sample(config: SceneConfig, split: str, seed: int, index: int) -> Scene:
    """Samples scene `index` of a split; the number of objects, and where they are, are uniform in every split."""
    check_split(split)
    number = 1 + int(generator(seed, index).integers(config.most_objects))
    for attempt in itertools.count():
        scene = sample_any(config, number, generator(seed, index, attempt))
        if split_of(scene) == split:
            return scene
    raise AssertionError


def sample_any(config: SceneConfig, number: int, random: np.random.Generator) -> Scene:
    """Samples a scene of a number of objects, of whatever split."""
    kinds: list[str] = []
    for _ in range(number):
        repeats = kinds and random.random() < _REPEAT_FRACTION
        kinds.append(pick(kinds if repeats else [kind for kind in config.kinds if kind not in kinds], random))
    random.shuffle(kinds)
    cells = pick(layouts(number), random)
    objects = tuple(SceneObject(row, column, kind) for (row, column), kind in zip(cells, kinds, strict=True))
    return Scene(pick(tuple(SKIES), random), pick(tuple(GROUNDS), random), objects)


def pick(choices: Sequence[T], random: np.random.Generator) -> T:
    """One of the choices, all equally likely."""
    return choices[int(random.integers(len(choices)))]


@cache
def layouts(number: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Every way to place so many objects without overlap."""
    cells = [(row, column) for row in range(NUM_POSITIONS) for column in range(NUM_POSITIONS)]

    def apart(one: tuple[int, int], two: tuple[int, int]) -> bool:
        return max(abs(one[0] - two[0]), abs(one[1] - two[1])) >= _CELLS_PER_OBJECT

    found: list[tuple[tuple[int, int], ...]] = [()]
    for _ in range(number):
        found = [
            (*layout, cell)
            for layout in found
            for cell in cells
            if (not layout or cell > layout[-1]) and all(apart(cell, other) for other in layout)
        ]
    return tuple(found)


def check_split(split: str) -> None:
    """Raises a `UserError` if there is no such split."""
    if split not in SPLITS:
        raise UserError(f"scenes have no split {split!r}: one of {', '.join(SPLITS)}")


def split_of(scene: Scene) -> str:
    """The one split that a scene is in."""
    kinds = sorted(each.kind for each in scene.objects)
    if any(scene.sky == new_sky(kind) for kind in kinds):
        return "new_pairs"
    return "validation" if _is_held_out((scene.sky, *kinds)) else "train"


@cache
def new_sky(kind: str) -> str | None:
    """The sky with which no scene in training has such an object; most kinds are seen with every sky."""
    number, rest = divmod(list(KINDS).index(kind) + 1, _KINDS_PER_NEW_PAIR)
    return None if rest else list(SKIES)[number % len(SKIES)]


@cache
def _is_held_out(names: tuple[str, ...]) -> bool:
    return _hash(*names) < _HELD_OUT_FRACTION


def _hash(*names: str) -> float:
    return int.from_bytes(hashlib.sha256("\n".join(names).encode()).digest()[:8], "big") / 2**64


def render(scene: Scene) -> UInt8[np.ndarray, "32 32 3"]:
    """Renders a scene."""
    image = background(scene.sky, scene.ground)
    for each in scene.objects:
        left, top, right, bottom = each.box
        color, alpha = np.split(glyph(each.kind), [3], axis=-1)
        # Colors are multiplied by alpha already.
        image[top:bottom, left:right] = color + (1 - alpha) * image[top:bottom, left:right]
    return np.round(image).astype(np.uint8)


def background(sky: str, ground: str) -> Float32[np.ndarray, "32 32 3"]:
    """A scene without objects, from 0 to 255."""
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:HORIZON], image[HORIZON:] = SKIES[sky], GROUNDS[ground]
    return image


@cache
def glyph(kind: str) -> Float32[np.ndarray, "12 12 4"]:
    """An emoji at the size of an object: colors from 0 to 255, multiplied by alpha, which is from 0 to 1.

    Raises:
      UserError: if there is no font, or it has no such emoji.
    """
    image = emoji.glyph(_font(), KINDS[kind])
    if image is None:
        raise UserError(
            f"{emoji.font_file()} has no emoji for {kind!r} ({KINDS[kind]}): take a newer {emoji.FONT_FILE}"
        )
    image = image.crop(image.getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    # Pillow multiplies by alpha before it scales.
    pixels = np.asarray(square.resize((OBJECT_SIDE, OBJECT_SIDE), Image.Resampling.LANCZOS)).astype(np.float32)
    alpha = pixels[..., 3:] / 255
    return np.concatenate([pixels[..., :3] * alpha, alpha], axis=-1)


_font = cache(emoji.load_font)
