"""Questions about scenes, of seven types, with their answers.

No answer is much more frequent than others of its type: how many there are of a kind would be "one" nearly always, if
all kinds were asked for alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cm3leon_jax.counter_random import generator, hash64
from cm3leon_jax.errors import UserError
from examples.scenes.pictures import Scene, SceneConfig, SceneObject, pick
from examples.scenes.texts import NUMBERS, Wordings, plural, position, with_article

QUESTIONS = {
    "sky_color": Wordings(
        ("what color is the sky?", "what is the color of the sky?", "which color does the sky have?"),
        ("which color is the sky?", "what color does the sky have?"),
    ),
    "ground_color": Wordings(
        ("what color is the ground?", "what is the color of the ground?", "which color does the ground have?"),
        ("which color is the ground?", "what color does the ground have?"),
    ),
    "num_objects": Wordings(
        ("how many objects are there?", "how many objects are in the picture?", "what is the number of objects?"),
        ("how many objects does the picture have?", "what is the number of objects in the picture?"),
    ),
    "num_of_kind": Wordings(
        (
            "how many {kinds} are there?",
            "how many {kinds} are in the picture?",
            "what is the number of {kinds}?",
            "how many {kinds} do you see?",
        ),
        ("how many {kinds} does the picture have?", "what is the number of {kinds} in the picture?"),
    ),
    "presence": Wordings(
        (
            "is there {a_kind}?",
            "is there {a_kind} in the picture?",
            "does the picture have {a_kind}?",
            "do you see {a_kind}?",
            "do you see {a_kind} in the picture?",
            "is one of the objects {a_kind}?",
            "is {a_kind} one of the objects?",
            "is {a_kind} to be seen?",
            "is {a_kind} somewhere in the picture?",
        ),
        ("is {a_kind} in the picture?", "is {a_kind} there?"),
    ),
    "location": Wordings(
        (
            "where is the {kind}?",
            "where in the picture is the {kind}?",
            "where do you see the {kind}?",
            "the {kind} is where?",
        ),
        ("where is the {kind} in the picture?", "in the picture, where is the {kind}?"),
    ),
    "leftmost": Wordings(
        (
            "which is more to the left, the {first} or the {second}?",
            "what is on the left, the {first} or the {second}?",
            "is the {first} or the {second} more to the left?",
            "the {first} or the {second}: which is more to the left?",
            "which of the two is on the left, the {first} or the {second}?",
        ),
        (
            "which is on the left, the {first} or the {second}?",
            "is the {first} or the {second} on the left?",
        ),
    ),
}

# How often each type is asked: more often what is about an object of a named kind, which takes longest to learn.
_RATES = {
    "sky_color": 1.0,
    "ground_color": 1.0,
    "num_objects": 1.0,
    "num_of_kind": 3.0,
    "presence": 3.0,
    "location": 3.0,
    "leftmost": 2.0,
}
# Weights of the answers to how many there are of a kind, zero first: few scenes have three or four of one.
_WEIGHTS = np.array([4.0, 4.0, 12.0, 40.0, 80.0])
# Draws a question of which one is kept at least, as long as there are more.
_ATTEMPTS = 4
# Apart from the numbers that a scene of the same seed and index is sampled by.
_STREAM = (0, 0)
# Columns between two objects of which one is clearly more to the left.
_MIN_COLUMNS = 2


@dataclass(frozen=True)
class Question:
    """A question and its one right answer; `choices` are given in the question, if any are."""

    type: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()


def sample_question(
    config: SceneConfig, scene: Scene, seed: int, index: int, held_out: bool = False, type: str | None = None
) -> Question:
    """Samples one question, of a type if one is given.

    Raises:
      UserError: if there is no such type, or the scene has no question of it (`can_ask`).
    """
    if type is not None and not can_ask(scene, type):
        raise UserError(f"the question {type}: no object of this scene can be asked about so")
    return sample_questions(config, scene, seed, index, 1, held_out, [type] if type else tuple(QUESTIONS))[0]


def sample_questions(
    config: SceneConfig,
    scene: Scene,
    seed: int,
    index: int,
    number: int,
    held_out: bool = False,
    types: Sequence[str] = tuple(QUESTIONS),
    wording: int | None = None,
) -> list[Question]:
    """Samples up to `number` different questions of the types that can be asked of a scene, in one wording if given."""
    random = generator(seed, index, *_STREAM)
    possible = [type for type in types if can_ask(scene, type)]
    rates = np.array([_RATES[type] for type in possible])
    found: dict[tuple[str, ...], Question] = {}
    for attempt in range(_ATTEMPTS * number):
        type = possible[int(random.choice(len(possible), p=rates / rates.sum()))]
        chosen = int(hash64(seed, index, attempt)) if wording is None else wording
        fields, answer, choices = _ask(config, scene, type, random)
        text = QUESTIONS[type].say(fields, chosen, held_out)
        found.setdefault((type, *sorted(fields.values())), Question(type, text, answer, choices))
        if len(found) == number:
            break
    return list(found.values())


def can_ask(scene: Scene, type: str) -> bool:
    """Whether a scene has a question of a type: not all have an object that its kind alone names, or two of these."""
    if type not in QUESTIONS:
        raise UserError(f"scenes have no question {type!r}: one of {', '.join(QUESTIONS)}")
    if type == "location":
        return bool(_single(scene))
    return type != "leftmost" or bool(_pairs(scene))


def _ask(
    config: SceneConfig, scene: Scene, type: str, random: np.random.Generator
) -> tuple[dict[str, str], str, tuple[str, ...]]:
    """What the question names, its answer, and the choices that it gives, if any."""
    counts = scene.counts
    absent = [kind for kind in config.kinds if kind not in counts]
    if type == "sky_color":
        return {}, scene.sky, ()
    if type == "ground_color":
        return {}, scene.ground, ()
    if type == "num_objects":
        return {}, NUMBERS[len(scene.objects)], ()
    if type == "num_of_kind":
        possible = sorted({0, *counts.values()})
        weights = _WEIGHTS[possible]
        count = int(random.choice(possible, p=weights / weights.sum()))
        kind = pick([kind for kind in counts if counts[kind] == count] or absent, random)
        return {"kinds": plural(kind)}, NUMBERS[count], ()
    if type == "presence":
        is_there = bool(scene.objects) and random.random() < 0.5
        kind = pick(tuple(counts) if is_there else absent, random)
        return {"a_kind": with_article(kind)}, "yes" if is_there else "no", ()
    if type == "location":
        asked = pick(_single(scene), random)
        return {"kind": asked.kind}, position(asked), ()
    left, right = pick(_pairs(scene), random)
    choices = (left, right) if random.random() < 0.5 else (right, left)
    return dict(zip(("first", "second"), choices, strict=True)), left, choices


def _single(scene: Scene) -> list[SceneObject]:
    """Objects that their kind alone names."""
    return [each for each in scene.objects if scene.counts[each.kind] == 1]


def _pairs(scene: Scene) -> list[tuple[str, str]]:
    """Kinds of which there is one each, the first of which is clearly more to the left."""
    single = _single(scene)
    return [(one.kind, two.kind) for one in single for two in single if two.column - one.column >= _MIN_COLUMNS]


def majorities(questions: Sequence[Question]) -> dict[str, float]:
    """By type, how many would be right without a look at the image: the most frequent answer, or one of the choices."""
    by_type: dict[str, list[Question]] = defaultdict(list)
    for each in questions:
        by_type[each.type].append(each)
    return {type: _majority(found) for type, found in sorted(by_type.items())}


def _majority(questions: Sequence[Question]) -> float:
    if questions[0].choices:
        first = sum(each.answer == each.choices[0] for each in questions) / len(questions)
        return max(first, 1 - first)
    return Counter(each.answer for each in questions).most_common(1)[0][1] / len(questions)
