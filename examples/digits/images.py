"""The 1,797 handwritten 8x8 digits of scikit-learn, with captions: a corpus that needs no download.

The first 80% train, the last 360 are held out. The set is in the order of its writers, so the held-out digits are of
hands never seen in training.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
from jaxtyping import Int, UInt8
from scipy import ndimage
from sklearn.datasets import load_digits

from cm3leon_jax.counter_random import generator, hash64

NUM_TRAIN, NUM_VALIDATION = 1437, 360
# Copies of each training digit: the original, the rest augmented.
NUM_COPIES = 16
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Each names the digit once, and no other number ("one" as a pronoun would be read as a label).
TEMPLATES = (
    "a handwritten {word}",
    "a handwritten {numeral}",
    "the digit {word}",
    "the digit {numeral} written by hand",
    "a photo of the number {numeral}",
    "a photo of the number {word}",
    "the number {word} in pencil",
    "a small scan of the digit {numeral}",
    "someone wrote the number {word}",
    "{numeral}, written with a pen",
    "{word}, in somebody's handwriting",
    "a grey picture of {word}",
    "this is the digit {word}",
    "this picture shows the number {numeral}",
    "handwriting: {numeral}",
    "a drawing of the numeral {numeral}",
)
_AUGMENTATION_SEED = 0
_CAPTION_SEED = 1


@cache
def load(split: str) -> tuple[UInt8[np.ndarray, "n 8 8 1"], Int[np.ndarray, " n"]]:
    """Loads images, white strokes on black in 0..255, and labels of "train" (1,437) or "validation" (360)."""
    rows = {"train": slice(0, NUM_TRAIN), "validation": slice(NUM_TRAIN, None)}[split]
    pixels, labels = load_digits(return_X_y=True)
    scaled = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return scaled[rows], labels[rows].astype(np.int64)


def augmented(index: int, copy: int) -> UInt8[np.ndarray, "8 8 1"]:
    """Returns a training image slightly rotated, zoomed, sheared and shifted by its indices; copy 0 is the original."""
    pixels = load("train")[0][index]
    if copy == 0:
        return pixels
    # Kept small: at 8x8 a stroke is a pixel or two wide, and stronger changes turn one digit into another.
    largest = np.array([np.deg2rad(10), 0.1, 0.1, 0.5, 0.5])
    angle, zoom, shear, shift_y, shift_x = generator(_AUGMENTATION_SEED, index, copy).uniform(-largest, largest)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) / (1 + zoom)
    centre = np.array([3.5, 3.5])
    offset = centre + np.array([shift_y, shift_x]) - matrix @ centre
    moved = ndimage.affine_transform(pixels[..., 0].astype(np.float32), matrix, offset, order=3)
    return np.clip(np.round(moved), 0, 255).astype(np.uint8)[..., None]


def caption(label: int, index: int) -> str:
    """Returns one of the captions of a digit, chosen by `index`."""
    template = TEMPLATES[int(hash64(_CAPTION_SEED, index)) % len(TEMPLATES)]
    return template.format(word=WORDS[label], numeral=label)


def label_in(text: str) -> int | None:
    """Finds the digit that a text names by word or numeral; None if it names none, or more than one."""
    tokens = re.findall(r"[a-z]+|\d+", text.lower())
    labels = {
        WORDS.index(token) if token in WORDS else int(token) for token in tokens if token in WORDS or token.isdigit()
    }
    return labels.pop() if len(labels) == 1 and max(labels) <= 9 else None
