"""Texts of scenes: short and long captions, objects with their boxes, and what a caption names.

Everything is said in several ways, some of which are held out: they are made of words that the others have, too, so
that what is new about them is the sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cm3leon_jax.errors import UserError
from examples.scenes.pictures import GROUNDS, KINDS, SKIES, Scene, SceneObject


@dataclass(frozen=True)
class Wordings:
    """The ways to say one thing; all have the same {fields}."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]

    def say(self, fields: Mapping[str, str], number: int, held_out: bool = False) -> str:
        """Says it in one of the ways, chosen by `number`."""
        choices = self.held_out if held_out else self.seen
        return choices[number % len(choices)].format(**fields)


CAPTIONS = {
    "short": Wordings(
        (
            "{objects} under {a_sky} sky",
            "a picture of {objects} under {a_sky} sky",
            "{objects} and {a_sky} sky",
            "{objects}. the sky is {sky}",
            "{a_sky} sky with {objects}",
        ),
        ("a picture of {a_sky} sky with {objects}", "a picture of {objects}. the sky is {sky}"),
    ),
    "long": Wordings(
        (
            "the sky is {sky} and the ground is {ground}. there is {positioned}",
            "a picture of {a_sky} sky and {a_ground} ground with {positioned}",
            "{positioned}, under {a_sky} sky, the ground is {ground}",
            "{positioned}. the sky is {sky} and the ground is {ground}",
        ),
        (
            "a picture of {positioned}. the sky is {sky} and the ground is {ground}",
            "{a_sky} sky and {a_ground} ground. there is {positioned}",
        ),
    ),
}

# How objects are listed: as codes are sampled, row by row, or from left to right.
ORDERS = {
    "raster": lambda each: (each.row, each.column),
    "left_to_right": lambda each: (each.column, each.row),
}
NUMBERS = ("zero", "one", "two", "three", "four")
_POSITIONS = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
# Rows, and columns, of objects that are on the same third of the image.
_PER_THIRD = 2


def caption(scene: Scene, form: str, number: int, held_out: bool = False) -> str:
    """A "short" caption names the objects and the sky; a "long" one says where each is, and the ground."""
    if form not in CAPTIONS:
        raise UserError(f"scenes have no caption {form!r}: one of {', '.join(CAPTIONS)}")
    fields = {
        "sky": scene.sky,
        "a_sky": with_article(scene.sky),
        "ground": scene.ground,
        "a_ground": with_article(scene.ground),
        "objects": _join([_several(kind, count) for kind, count in scene.counts.items()]),
        "positioned": _join([f"{with_article(each.kind)} {position(each)}" for each in scene.objects]),
    }
    return CAPTIONS[form].say(fields, number, held_out)


def located(scene: Scene, order: str = "raster") -> str:
    """The objects with their boxes in pixels, as CM3Leon's grounded prompts have them (arXiv 2309.02591, Table 5)."""
    return ", ".join(f"{each.kind} at {location(each)}" for each in ordered(scene, order))


def location(each: SceneObject) -> str:
    """Where an object is: its top left and bottom right corners in pixels."""
    left, top, right, bottom = each.box
    return f"location ({left}, {top}) -> ({right}, {bottom})"


def ordered(scene: Scene, order: str) -> list[SceneObject]:
    """The objects in one of the `ORDERS`."""
    if order not in ORDERS:
        raise UserError(f"the objects of a scene have no order {order!r}: one of {', '.join(ORDERS)}")
    return sorted(scene.objects, key=ORDERS[order])


def position(each: SceneObject) -> str:
    """Where an object is in words, by thirds of the image: no two objects that do not overlap are on the same."""
    return _POSITIONS[each.row // _PER_THIRD][each.column // _PER_THIRD]


def with_article(name: str) -> str:
    """ "an" before a vowel, "a" before other letters."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(kind: str) -> str:
    if kind.endswith("y"):
        return f"{kind[:-1]}ies"
    return f"{kind}es" if kind.endswith(("x", "s")) else f"{kind}s"


def _several(kind: str, count: int) -> str:
    return with_article(kind) if count == 1 else f"{NUMBERS[count]} {plural(kind)}"


def _join(parts: Sequence[str]) -> str:
    return " and ".join([*([", ".join(parts[:-1])] if parts[1:] else []), *parts[-1:]]) or "nothing"


def kinds_in(text: str) -> Counter[str]:
    """How many objects of each kind a caption names."""
    named: Counter[str] = Counter()
    before = ""
    for word in re.findall(r"[a-z]+", text.lower()):
        if kind := _KIND_OF_WORD.get(word):
            named[kind] += NUMBERS.index(before) if before in NUMBERS else 1
        before = word
    return +named


_KIND_OF_WORD = {word: kind for kind in KINDS for word in (kind, plural(kind))}


def sky_in(text: str) -> str | None:
    """The color of the sky that a caption names; None if it names none, or more than one."""
    return _color_in(text, "sky", SKIES)


def ground_in(text: str) -> str | None:
    """The color of the ground that a caption names; None if it names none, or more than one."""
    return _color_in(text, "ground", GROUNDS)


def _color_in(text: str, what: str, colors: Mapping[str, object]) -> str | None:
    names = "|".join(colors)
    found = re.findall(rf"\b({names}) {what}\b|\b{what} is ({names})\b", text.lower())
    distinct = {before or after for before, after in found}
    return distinct.pop() if len(distinct) == 1 else None
