"""Instructions about digits, made of their images: edits of strokes, other digits, and questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage
from sklearn.neighbors import NearestNeighbors

from cm3leon_jax.counter_random import hash64
from examples.digits import images as digits

Pixels = UInt8[np.ndarray, "8 8 1"]

_TYPE_SEED, _WORDING_SEED = 2, 3


def _mean(one: Pixels, two: Pixels) -> Pixels:
    return np.round((one.astype(np.float32) + two) / 2).astype(np.uint8)


def _shifted(rows: int, columns: int) -> Callable[[Pixels], Pixels]:
    """Shifts an image by a pixel; what comes in is black."""
    return lambda pixels: ndimage.shift(pixels, (rows, columns, 0), order=0, cval=0)


# What an edit does to the pixels, and how it is asked for.
EDITS: dict[str, tuple[Callable[[Pixels], Pixels], tuple[str, ...]]] = {
    "bolder": (
        lambda pixels: _mean(pixels, ndimage.grey_dilation(pixels, size=(2, 2, 1))),
        ("make it bolder", "draw it with a thicker pen", "make the lines thicker"),
    ),
    "thinner": (
        lambda pixels: _mean(pixels, ndimage.grey_erosion(pixels, size=(2, 2, 1))),
        ("make it thinner", "draw it with a thinner pen", "make the lines thinner"),
    ),
    "negative": (lambda pixels: 255 - pixels, ("invert it", "make it a negative", "swap black and white")),
    "mirrored": (lambda pixels: pixels[:, ::-1], ("mirror it", "flip it from left to right", "make it a mirror image")),
    "left": (_shifted(0, -1), ("shift it to the left", "move it left")),
    "right": (_shifted(0, 1), ("shift it to the right", "move it right")),
    "up": (_shifted(-1, 0), ("shift it up", "move it up")),
    "down": (_shifted(1, 0), ("shift it down", "move it down")),
}
_TURN = ("turn it into a {word}", "make it a {word}", "change it to the digit {word}")

# How each question is asked, and its answer for a digit.
QUESTIONS: dict[str, tuple[tuple[str, ...], Callable[[int], str]]] = {
    "which": (("which digit is this?", "what number is it?"), lambda label: digits.WORDS[label]),
    "parity": (("is it even or odd?", "is the number odd or even?"), lambda label: "odd" if label % 2 else "even"),
    "size": (
        ("is it larger than five?", "is the number greater than five?"),
        lambda label: "yes" if label > 5 else "no",
    ),
}


@dataclass(frozen=True)
class Edit:
    """An instruction for an image; `label` is the digit that it asks for, if it asks for another."""

    type: str
    instruction: str
    label: int | None = None


def edit_of(index: int, type: str | None = None) -> Edit:
    """Edit `index`, of a type if one is given."""
    number = int(hash64(_TYPE_SEED, index))
    wording = int(hash64(_WORDING_SEED, index))
    # Mirroring moves every code of an image, and is learned last.
    types = (*EDITS, *["mirrored"] * 3, *["turn"] * 4)
    type = type or types[number % len(types)]
    if type == "turn":
        label = number // len(types) % 10
        return Edit(type, _TURN[wording % len(_TURN)].format(word=digits.WORDS[label]), label)
    wordings = EDITS[type][1]
    return Edit(type, wordings[wording % len(wordings)])


def edited(pixels: Pixels, edit: Edit) -> Pixels:
    """The image after an edit: another digit is the nearest one of the training split."""
    if edit.label is None:
        return EDITS[edit.type][0](pixels)
    images, nearest = _nearest(edit.label)
    return images[nearest.kneighbors(pixels.reshape(1, -1), return_distance=False)[0, 0]]


@cache
def _nearest(label: int) -> tuple[UInt8[np.ndarray, "n 8 8 1"], NearestNeighbors]:
    pixels, labels = digits.load("train")
    chosen = pixels[labels == label]
    return chosen, NearestNeighbors(n_neighbors=1).fit(chosen.reshape(len(chosen), -1))


def question_of(label: int, index: int, type: str | None = None) -> tuple[str, str]:
    """Question `index` about a digit, of a type or of any, and its answer."""
    type = type or list(QUESTIONS)[int(hash64(_TYPE_SEED, index)) % len(QUESTIONS)]
    wordings, answer = QUESTIONS[type]
    return wordings[int(hash64(_WORDING_SEED, index)) % len(wordings)], answer(label)
