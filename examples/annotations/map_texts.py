"""What is true of a view of a map: captions, questions with their answers, and long descriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from examples.annotations.colors import COLORS
from examples.annotations.maps import View, Visible
from examples.annotations.published import chosen, hashed, shuffled

# Regions that a text names at most.
_MOST_NAMED = 3
# A region is larger, or more to the left, if anybody would say so.
_CLEARLY_LARGER, _CLEARLY_LEFT = 1.5, 0.2
# Questions name regions of at least this fraction of the view.
_LEAST_ASKED = 0.04
# Half the side of what "the middle" is, as a fraction of the view's.
_MIDDLE = 0.06


def location(right: float, down: float) -> str:
    """In words, which ninth of an image a point is in."""
    vertical, horizontal = (min(int(3 * each), 2) for each in (down, right))
    return (
        ("at the top left", "at the top", "at the top right"),
        ("at the left", "in the middle", "at the right"),
        ("at the bottom left", "at the bottom", "at the bottom right"),
    )[vertical][horizontal]


def caption(view: View) -> str | None:
    """The largest regions with their colors and where they are; None if none has a color of a name."""
    parts = [f"{_a(each.color)} region {location(*each.center)}" for each in view.named[:_MOST_NAMED]]
    return f"a map with {enumerated(parts)}" if parts else None


def _a(color: str | None) -> str:
    return f"{'an' if color == 'orange' else 'a'} {color}"


def enumerated(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


class Phrase(NamedTuple):
    """The name of a region within a text: its start and end, and the region."""

    start: int
    end: int
    region: Visible


def grounded_caption(view: View) -> tuple[str, list[Phrase]]:
    """A caption of the names of the largest regions, and where in it each name is."""
    text, phrases = f"Map of {view.map.name} with ", []
    shown = view.regions[:_MOST_NAMED]
    for number, each in enumerate(shown):
        text += "" if not number else " and " if number == len(shown) - 1 else ", "
        phrases.append(Phrase(len(text), len(text) + len(each.region.name), each))
        text += each.region.name
    return text, phrases


def narrative(view: View) -> str:
    """A long description: the map, and name, color and location of its largest regions."""
    sentences = [f"This is a part of the map of {view.map.name}, which shows its {view.map.divisions.lower()}."]
    for each in view.regions[: _MOST_NAMED + 1]:
        color = f"is {each.color} and " if each.color else ""
        sentences.append(f"{each.region.name} {color}lies {location(*each.center)}.")
    return " ".join(sentences)


class Question(NamedTuple):
    type: str
    text: str
    answer: str


def questions(view: View) -> list[Question]:
    """One question of each type that the view has a certain answer to, in an order of its own."""
    found = (make(view) for make in _TYPES)
    return shuffled((each for each in found if each is not None), "questions", view.key)


def _middle(view: View) -> Question | None:
    half, center = max(1, round(_MIDDLE * view.side)), view.side // 2
    middle = np.s_[center - half : center + half, center - half : center + half]
    at_center = next((each for each in view.regions if each.mask[middle].all()), None)
    if at_center is None or at_center.color is None:
        return None
    return Question("middle", "What color is the region in the middle?", at_center.color)


def _largest(view: View) -> Question | None:
    first, *others = view.regions
    if first.color is None or (others and first.area < _CLEARLY_LARGER * others[0].area):
        return None
    return Question("largest", "What color is the largest region?", first.color)


def _is_there(view: View) -> Question | None:
    there = [each.color for each in view.named if each.area >= _LEAST_ASKED]
    absent = [color for color in COLORS if view.shows(color) is False]
    colors, answer = (there, "yes") if hashed("is there", view.key) % 2 else (absent, "no")
    if not colors:
        return None
    return Question("is_there", f"Is there {_a(chosen(sorted(colors), 'color', view.key))} region?", answer)


def _pair(view: View) -> list[Visible]:
    found = shuffled(view.unique(_LEAST_ASKED), "pair", view.key)
    return found[:2] if len(found) > 1 else []


def _left(view: View) -> Question | None:
    if not (pair := _pair(view)) or abs(pair[0].center[0] - pair[1].center[0]) < _CLEARLY_LEFT:
        return None
    answer = min(pair, key=lambda each: each.center[0])
    text = f"Which region is farther to the left, the {pair[0].color} or the {pair[1].color} one?"
    return Question("left", text, str(answer.color))


def _larger(view: View) -> Question | None:
    if not (pair := _pair(view)):
        return None
    smaller, larger = sorted(pair, key=lambda each: each.area)
    if larger.area < _CLEARLY_LARGER * smaller.area:
        return None
    text = f"Which region is larger, the {pair[0].color} or the {pair[1].color} one?"
    return Question("larger", text, str(larger.color))


def _how_many(view: View) -> Question | None:
    return Question("how_many", "How many regions are there?", str(len(view.regions))) if view.is_complete else None


_TYPES: tuple[Callable[[View], Question | None], ...] = (_middle, _largest, _is_there, _left, _larger, _how_many)
QUESTION_TYPES = tuple(each.__name__.removeprefix("_") for each in _TYPES)
