"""Edits of scenes: the color of the sky, and objects that are added, removed, replaced and moved."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cm3leon_jax.counter_random import generator, hash64
from cm3leon_jax.errors import UserError
from examples.scenes.pictures import (
    NUM_POSITIONS,
    SKIES,
    Scene,
    SceneConfig,
    SceneObject,
    check_split,
    overlap,
    pick,
    sample_any,
    split_of,
)
from examples.scenes.texts import Wordings, location, with_article

EDITS = {
    "sky": Wordings(
        (
            "change the color of the sky to {sky}",
            "make the sky {sky}",
            "the sky should be {sky}",
            "turn the sky {sky}",
            "the color of the sky should be {sky}",
            "give the sky the color {sky}",
        ),
        ("change the sky to {sky}", "make the color of the sky {sky}"),
    ),
    "add": Wordings(
        (
            "add {a_kind} at {location}",
            "put {a_kind} at {location}",
            "place {a_kind} at {location}",
            "there should be {a_kind} at {location}",
            "at {location}, put {a_kind}",
            "at {location} the picture should have {a_kind}",
            "{a_kind} should be at {location}",
            "add to the picture {a_kind} at {location}",
        ),
        ("at {location}, add {a_kind}", "at {location} there should be {a_kind}"),
    ),
    "remove": Wordings(
        (
            "remove the {kind}",
            "take the {kind} away",
            "there should be no {kind}",
            "the {kind} should be removed",
            "remove the {kind} from the picture",
            "take the {kind} out of the picture",
            "the picture should have no {kind}",
            "take out the {kind}",
        ),
        ("take away the {kind}", "there should be no {kind} in the picture"),
    ),
    "replace": Wordings(
        (
            "replace the {kind} with {a_new_kind}",
            "change the {kind} to {a_new_kind}",
            "turn the {kind} into {a_new_kind}",
            "put {a_new_kind} in place of the {kind}",
            "turn the {kind} to {a_new_kind}",
            "in place of the {kind} there should be {a_new_kind}",
            "the {kind} should be {a_new_kind}",
            "in the picture, replace the {kind} with {a_new_kind}",
        ),
        ("change the {kind} into {a_new_kind}", "in place of the {kind}, put {a_new_kind}"),
    ),
    "move": Wordings(
        (
            "move the {kind} to {location}",
            "take the {kind} to {location}",
            "the {kind} should be at {location}",
            "put the {kind} at {location}",
            "at {location}, put the {kind}",
            "at {location} the picture should have the {kind}",
            "the {kind} should move to {location}",
            "take the {kind} and put it at {location}",
        ),
        ("place the {kind} at {location}", "at {location} there should be the {kind}"),
    ),
}

# How often each is sampled: more often what takes longer to learn.
_RATES = {"sky": 1.0, "add": 1.5, "remove": 2.5, "replace": 3.0, "move": 2.0}
# Rows or columns by which an object is moved at least: less is hard to see.
_MIN_MOVE = 2


@dataclass(frozen=True)
class Edit:
    """An instruction, the scene that it is about, and the one that it asks for."""

    type: str
    before: Scene
    after: Scene
    # What the wordings of the instruction name.
    fields: Mapping[str, str]

    def instruction(self, number: int, held_out: bool = False) -> str:
        """The instruction in one of its wordings, chosen by `number`."""
        return EDITS[self.type].say(self.fields, number, held_out)


def sample_edit(config: SceneConfig, split: str, seed: int, index: int, type: str | None = None) -> Edit:
    """Samples edit `index` of a split, of a type if one is given.

    The split is that of the scene that is asked for. In training both scenes are of the training split; elsewhere the
    one before may be, but has no new pair unless the split is of these.
    """
    check_split(split)
    if type is None:
        rates = np.array([_RATES[name] for name in EDITS])
        type = tuple(EDITS)[int(generator(seed, index).choice(len(EDITS), p=rates / rates.sum()))]
    elif type not in EDITS:
        raise UserError(f"scenes have no edit {type!r}: one of {', '.join(EDITS)}")
    least, most = 1 + (type == "remove"), config.most_objects - (type == "add")
    if most < least:
        raise UserError(f"the edit {type}: scenes of at most {config.most_objects} objects have none: set most_objects")
    allowed = {"train": ("train",), "validation": ("train", "validation")}.get(split)
    for attempt in itertools.count():
        random = generator(seed, index, attempt)
        before = sample_any(config, least + int(hash64(seed, index)) % (most - least + 1), random)
        edit = _EDITORS[type](config, before, random) if allowed is None or split_of(before) in allowed else None
        if edit is not None and split_of(edit.after) == split:
            return edit
    raise AssertionError


def _change_sky(config: SceneConfig, scene: Scene, random: np.random.Generator) -> Edit:
    sky = pick([name for name in SKIES if name != scene.sky], random)
    return Edit("sky", scene, replace(scene, sky=sky), {"sky": sky})


def _add(config: SceneConfig, scene: Scene, random: np.random.Generator) -> Edit | None:
    kind = pick(config.kinds, random)
    free = _free(kind, scene.objects)
    if not free:
        return None
    new = pick(free, random)
    after = replace(scene, objects=(*scene.objects, new))
    return Edit("add", scene, after, {"a_kind": with_article(kind), "location": location(new)})


def _remove(config: SceneConfig, scene: Scene, random: np.random.Generator) -> Edit | None:
    if (old := _single(scene, random)) is None:
        return None
    return Edit("remove", scene, replace(scene, objects=_without(scene, old)), {"kind": old.kind})


def _replace(config: SceneConfig, scene: Scene, random: np.random.Generator) -> Edit | None:
    if (old := _single(scene, random)) is None:
        return None
    kind = pick([kind for kind in config.kinds if kind != old.kind], random)
    after = replace(scene, objects=(*_without(scene, old), replace(old, kind=kind)))
    return Edit("replace", scene, after, {"kind": old.kind, "a_new_kind": with_article(kind)})


def _move(config: SceneConfig, scene: Scene, random: np.random.Generator) -> Edit | None:
    if (old := _single(scene, random)) is None:
        return None
    free = [
        new
        for new in _free(old.kind, _without(scene, old))
        if max(abs(new.row - old.row), abs(new.column - old.column)) >= _MIN_MOVE
    ]
    if not free:
        return None
    new = pick(free, random)
    after = replace(scene, objects=(*_without(scene, old), new))
    return Edit("move", scene, after, {"kind": old.kind, "location": location(new)})


_EDITORS = {"sky": _change_sky, "add": _add, "remove": _remove, "replace": _replace, "move": _move}


def _single(scene: Scene, random: np.random.Generator) -> SceneObject | None:
    """An object that its kind alone names; None if there is none."""
    single = [each for each in scene.objects if scene.counts[each.kind] == 1]
    return pick(single, random) if single else None


def _without(scene: Scene, old: SceneObject) -> tuple[SceneObject, ...]:
    return tuple(each for each in scene.objects if each != old)


def _free(kind: str, others: tuple[SceneObject, ...]) -> list[SceneObject]:
    """Objects of a kind at every position where they overlap no other."""
    everywhere = [SceneObject(row, column, kind) for row, column in itertools.product(range(NUM_POSITIONS), repeat=2)]
    return [each for each in everywhere if not any(overlap(each, other) for other in others)]
