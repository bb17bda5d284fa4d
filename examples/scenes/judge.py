"""Reads images back into scenes by their true renderings, and says how far they are what was asked for.

Sky and ground are the colors that most pixels are near to. At every position every kind of object is then tried on the
known background: one can be there if what differs from its rendering is less than `_MAX_ERROR` of what it would change.
Of all scenes made of these, the image shows the one that explains most of it: one after the other, the best first,
would take one object that reaches into two others for both. Images are compared by the means of cells: pixel by pixel,
a blurred one is nearer to another smooth object than to its own.

No part of a model takes part in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float32, UInt8

from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.object_scores import GOOD_IOU
from examples.scenes.edits import Edit
from examples.scenes.pictures import (
    CELL,
    GROUNDS,
    HORIZON,
    MOST_OBJECTS,
    NUM_POSITIONS,
    OBJECT_SIDE,
    SIDE,
    SKIES,
    Scene,
    SceneConfig,
    SceneObject,
    glyph,
    layouts,
)
from examples.scenes.questions import Question, majorities
from examples.scenes.texts import ground_in, kinds_in, sky_in

# As a fraction of what an object changes. From 0.5 to 0.9, all of 300 reconstructions at 23 to 27 dB are read alike.
_MAX_ERROR = 0.7
# Colors farther apart than this, of 441 at most, are equally different.
_FAR = 80
_CELLS, _PER_OBJECT, _HORIZON_CELL = SIDE // CELL, OBJECT_SIDE // CELL, HORIZON // CELL
# Images read at a time: bounds the memory.
_BATCH = 256


def read(config: SceneConfig, images: UInt8[np.ndarray, "n 32 32 3"]) -> list[Scene]:
    """The scene that each image shows."""
    parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    return [scene for part in parts for scene in _read(config, part)]


def _read(config: SceneConfig, images: UInt8[np.ndarray, "n 32 32 3"]) -> list[Scene]:
    pixels = images.astype(np.float32)
    skies = _nearest(pixels[:, :HORIZON], SKIES)
    grounds = _nearest(pixels[:, HORIZON:], GROUNDS)
    background = np.empty((len(images), _CELLS, 1, 3), np.float32)
    background[:, :_HORIZON_CELL] = _colors(SKIES)[skies][:, None, None]
    background[:, _HORIZON_CELL:] = _colors(GROUNDS)[grounds][:, None, None]
    difference = _pooled(pixels) - background
    windows = np.lib.stride_tricks.sliding_window_view(difference, (_PER_OBJECT, _PER_OBJECT), axis=(1, 2))
    # [n, row, column, 27], and what each kind would change of the background: [n, row, kind, 27].
    found = np.moveaxis(windows, 3, -1).reshape(len(images), NUM_POSITIONS, NUM_POSITIONS, -1)
    changes = _changes(config.kinds)[skies, grounds]
    size = np.sum(changes**2, axis=-1)[:, :, None]
    # The squared error as background, less the squared error as an object.
    gains = 2 * np.einsum("nrcf,nrkf->nrck", found, changes, optimize=True) - size
    errors = np.sum(found**2, axis=-1)[..., None] - gains
    gains = np.where(errors < _MAX_ERROR * size, gains, 0).reshape(len(images), NUM_POSITIONS**2, -1)
    best = np.argmax(gains.max(axis=-1) @ _taken().T, axis=-1)
    return [
        Scene(list(SKIES)[sky], list(GROUNDS)[ground], _objects(config.kinds, of_image, _taken()[layout]))
        for sky, ground, of_image, layout in zip(skies, grounds, gains, best, strict=True)
    ]


def _objects(
    kinds: Sequence[str], gains: Float32[np.ndarray, "36 K"], taken: Float32[np.ndarray, "36"]
) -> tuple[SceneObject, ...]:
    positions = np.flatnonzero((taken > 0) & (gains.max(axis=-1) > 0))
    return tuple(
        SceneObject(int(position) // NUM_POSITIONS, int(position) % NUM_POSITIONS, kinds[gains[position].argmax()])
        for position in positions
    )


@cache
def _taken() -> Float32[np.ndarray, "layouts 36"]:
    """The positions of every layout that a scene can have, each as zeros and ones."""
    found = [layout for number in range(MOST_OBJECTS + 1) for layout in layouts(number)]
    taken = np.zeros((len(found), NUM_POSITIONS**2), np.float32)
    for index, layout in enumerate(found):
        taken[index, [row * NUM_POSITIONS + column for row, column in layout]] = 1
    return taken


def _nearest(pixels: Float32[np.ndarray, "n H W 3"], colors: dict[str, tuple[int, int, int]]) -> np.ndarray:
    """The index of the color that most pixels are near to."""
    flat, palette = pixels.reshape(len(pixels), -1, 1, 3), _colors(colors)
    distances = np.sum((flat - palette) ** 2, axis=-1)
    return np.argmin(np.minimum(distances, _FAR**2).sum(axis=1), axis=-1)


def _colors(colors: dict[str, tuple[int, int, int]]) -> Float32[np.ndarray, "c 3"]:
    return np.array(list(colors.values()), np.float32)


def _pooled(pixels: Float32[np.ndarray, "n H W C"]) -> Float32[np.ndarray, "n h w C"]:
    """The means of cells."""
    n, height, width, channels = pixels.shape
    return pixels.reshape(n, height // CELL, CELL, width // CELL, CELL, channels).mean(axis=(2, 4))


@cache
def _changes(kinds: tuple[str, ...]) -> Float32[np.ndarray, "sky ground 6 K 27"]:
    """How the means of cells differ from those of the background, by sky, ground, the object's row and its kind."""
    pooled = _pooled(np.stack([glyph(kind) for kind in kinds]))
    colors, alphas = pooled[..., :3], pooled[..., 3:]
    changes = np.empty((len(SKIES), len(GROUNDS), NUM_POSITIONS, len(kinds), _PER_OBJECT**2 * 3), np.float32)
    for row in range(NUM_POSITIONS):
        is_sky = np.arange(row, row + _PER_OBJECT)[:, None, None] < _HORIZON_CELL
        for sky, sky_color in enumerate(_colors(SKIES)):
            for ground, ground_color in enumerate(_colors(GROUNDS)):
                background = np.where(is_sky, sky_color, ground_color)
                changes[sky, ground, row] = (colors - alphas * background).reshape(len(kinds), -1)
    return changes


def score_images(asked: Sequence[Scene], read: Sequence[Scene]) -> dict[str, Estimate]:
    """How far images show the scenes that were asked for, by objects and by scenes."""
    owners, at_position, in_box, present = [], [], [], []
    for index, (wanted, found) in enumerate(zip(asked, read, strict=True)):
        left = Counter(found.counts)
        for each in wanted.objects:
            owners.append(index)
            at_position.append(each in found.objects)
            in_box.append(any(is_in_box(each, other) for other in found.objects))
            present.append(left[each.kind] > 0)
            left[each.kind] -= 1
    pairs = list(zip(asked, read, strict=True))
    return {
        "objects_at_position": _fraction(at_position, owners),
        "objects_in_box": _fraction(in_box, owners),
        "objects_present": _fraction(present, owners),
        "scenes_with_kinds": _fraction([wanted.counts == found.counts for wanted, found in pairs]),
        "scenes_with_sky": _fraction([wanted.sky == found.sky for wanted, found in pairs]),
        "scenes_with_ground": _fraction([wanted.ground == found.ground for wanted, found in pairs]),
        "scenes_whole": _fraction([wanted == found for wanted, found in pairs]),
    }


def is_in_box(wanted: SceneObject, found: SceneObject) -> bool:
    """Whether two objects are of one kind and their boxes have an IoU of at least one half."""
    rows, columns = abs(wanted.row - found.row), abs(wanted.column - found.column)
    shared = max(0, _PER_OBJECT - rows) * max(0, _PER_OBJECT - columns)
    return wanted.kind == found.kind and shared / (2 * _PER_OBJECT**2 - shared) >= GOOD_IOU


def score_edits(edits: Sequence[Edit], read: Sequence[Scene]) -> dict[str, Estimate]:
    """By type: how many images are edited as asked and not otherwise, and how many keep all that was to stay.

    An unedited image shows the scene before the edit.
    """
    values = {}
    for type in dict.fromkeys(edit.type for edit in edits):
        pairs = [(edit, found) for edit, found in zip(edits, read, strict=True) if edit.type == type]
        values[f"{type}_whole"] = _fraction([found == edit.after for edit, found in pairs])
        values[f"{type}_kept"] = _fraction([keeps(edit, found) for edit, found in pairs])
    unedited = [found == edit.before for edit, found in zip(edits, read, strict=True)]
    return values | {"edits_unedited": _fraction(unedited)}


def keeps(edit: Edit, found: Scene) -> bool:
    """Whether a scene has all that the scenes before and after an edit have in common."""
    if edit.before.sky == edit.after.sky != found.sky:
        return False
    stay = set(edit.before.objects) & set(edit.after.objects)
    return found.ground == edit.after.ground and stay <= set(found.objects)


def score_answers(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float | Estimate]:
    """The fraction of right answers, in all and by type, beside that of the most frequent answer of the type."""
    right = [_words(answer) == _words(each.answer) for each, answer in zip(questions, answers, strict=True)]
    values: dict[str, float | Estimate] = {"question_accuracy": _fraction(right)}
    for type, majority in majorities(questions).items():
        of_type = [is_right for each, is_right in zip(questions, right, strict=True) if each.type == type]
        values |= {f"{type}_accuracy": _fraction(of_type), f"{type}_majority": majority}
    return values


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def score_captions(scenes: Sequence[Scene], captions: Sequence[str]) -> dict[str, Estimate]:
    """How many captions name exactly the objects of their scene, the color of its sky, and that of its ground."""
    pairs = list(zip(scenes, captions, strict=True))
    return {
        "captions_with_kinds": _fraction([kinds_in(text) == scene.counts for scene, text in pairs]),
        "captions_with_sky": _fraction([sky_in(text) == scene.sky for scene, text in pairs]),
        "captions_with_ground": _fraction([ground_in(text) == scene.ground for scene, text in pairs]),
    }


def _fraction(is_right: Sequence[bool], groups: Sequence[int] | None = None) -> Estimate:
    return estimates.mean(np.array(is_right, np.float64), groups)
