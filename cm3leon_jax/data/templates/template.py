"""A template: the wordings in which the fields of an example become a document.

A wording is a document as the paper prints it (arXiv 2309.02591, Table 5): texts and images with `<break>` between
them and {fields} in them, such as "Question: {question} Answer: {answer} <break> {image}". Segments in round brackets
with a star, "({instruction} <break> {edited})*", come once for each of several turns. Which of the wordings an example
gets is sampled every time it comes into a batch; the first is that of the prepared corpus.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

BREAK = "<break>"


@dataclass(frozen=True)
class Field:
    """A field in a wording."""

    name: str
    is_image: bool = False
    # Whether a space is before it, which belongs to its first word.
    is_spaced: bool = False


# The parts of a segment: fields, and the texts around them.
Segment = tuple[str | Field, ...]


@dataclass(frozen=True)
class Wording:
    """A wording in its parts; those segments that come once for each turn are `turn_start` .. `turn_stop` - 1."""

    segments: tuple[Segment, ...]
    turn_start: int = 0
    turn_stop: int = 0

    @property
    def once(self) -> list[Field]:
        """The fields outside of turns."""
        outside = (*self.segments[: self.turn_start], *self.segments[self.turn_stop :])
        return [part for segment in outside for part in segment if isinstance(part, Field)]

    @property
    def in_turns(self) -> list[Field]:
        """The fields of a turn."""
        inside = self.segments[self.turn_start : self.turn_stop]
        return [part for segment in inside for part in segment if isinstance(part, Field)]


@dataclass(frozen=True)
class Template:
    """The wordings of an instruction, and what its fields are.

    Raises:
      ValueError: if the wordings do not fit each other or the fields.
    """

    wordings: tuple[str, ...]
    # Fields that are generated.
    targets: tuple[str, ...]
    # Fields that are images.
    images: tuple[str, ...] = ("image",)
    # Text fields that are context, not instruction: what a question is about.
    contexts: tuple[str, ...] = ()
    # Fields that are left out together, each alternative as often, where a condition is dropped so that generation can
    # be guided away from what a model gives without them. Everything but the target is always an alternative.
    drops: tuple[tuple[str, ...], ...] = ()
    # Whether a target image is an edit of the image before it.
    is_edit: bool = False

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("a template without a target teaches nothing: name the fields to be generated")
        if not self.wordings:
            raise ValueError("a template has at least one wording")
        known = {field.name for field in (*self.once, *self.in_turns)}
        named = {*self.targets, *self.contexts, *(name for drop in self.drops for name in drop)}
        if unknown := sorted((named | set(self.images)) - known):
            raise ValueError(f"no wording has the field {{{unknown[0]}}}")
        once, in_turns = ({field.name for field in fields} for fields in (self.once, self.in_turns))
        if both := sorted(once & in_turns):
            raise ValueError(f"{{{both[0]}}} is both in the turns and outside of them")
        for text, wording in zip(self.wordings, self.parsed, strict=True):
            names = [field.name for field in (*wording.once, *wording.in_turns)]
            if twice := next((name for name in names if names.count(name) > 1), ""):
                raise ValueError(f"the wording {text!r} has {{{twice}}} twice")
            if missing := [name for name in self.targets if name not in names]:
                raise ValueError(f"the wording {text!r} lacks the target {{{missing[0]}}}")
            if {field.name for field in wording.in_turns} != in_turns:
                raise ValueError(f"the turns of the wording {text!r} have other fields than those of the first")

    @cached_property
    def parsed(self) -> tuple[Wording, ...]:
        """The wordings in their parts."""
        return tuple(_parse(wording, self.images) for wording in self.wordings)

    @cached_property
    def once(self) -> tuple[Field, ...]:
        """The fields outside of turns that a corpus stores, with and without a space where wordings have both."""
        return tuple(dict.fromkeys(field for wording in self.parsed for field in wording.once))

    @cached_property
    def in_turns(self) -> tuple[Field, ...]:
        """The fields of a turn that a corpus stores."""
        return tuple(dict.fromkeys(field for wording in self.parsed for field in wording.in_turns))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields of an example: those outside of turns, then those of a turn."""
        return tuple(dict.fromkeys(field.name for field in (*self.once, *self.in_turns)))

    @property
    def fingerprint(self) -> str:
        """Equal for equal templates; stored in every checkpoint of a run on instructions."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def fields_of(self, num_values: int) -> list[tuple[str, int]] | None:
        """The name and turn of each of so many values of an example; None if no example has so many."""
        of_turn = tuple(dict.fromkeys(field.name for field in self.in_turns))
        once = [name for name in self.fields if name not in of_turn]
        rest = num_values - len(once)
        num_turns = rest // len(of_turn) if of_turn else 0
        if rest != num_turns * len(of_turn) or bool(of_turn) != (num_turns > 0):
            return None
        return [(name, 0) for name in once] + [(name, turn) for turn in range(num_turns) for name in of_turn]

    def stored(self, num_turns: int) -> list[tuple[Field, int]]:
        """The fields that a corpus stores of an example of so many turns, in order, each with its turn."""
        in_turns = [(field, turn) for turn in range(num_turns) for field in self.in_turns]
        return [*((field, 0) for field in self.once), *in_turns]

    def text(self, values: Sequence[str], wording: int) -> str:
        """The texts of a document in a wording, a line for each segment; `values` are those of `fields_of`.

        Raises:
          ValueError: if no example has so many values.
        """
        names = self.fields_of(len(values))
        if names is None:
            raise ValueError(f"{len(values)} values for the fields {', '.join(self.fields)}")
        by_name = dict(zip(names, values, strict=True))
        parsed = self.parsed[wording]
        num_turns = 1 + max(turn for _, turn in names)
        lines = []
        for number, segment in enumerate(parsed.segments):
            if any(isinstance(part, Field) and part.is_image for part in segment):
                continue
            for turn in range(num_turns if parsed.turn_start <= number < parsed.turn_stop else 1):
                parts = [
                    part if isinstance(part, str) else " " * part.is_spaced + by_name[part.name, turn].strip()
                    for part in segment
                ]
                lines.append("".join(parts))
        return "\n".join(lines)


def _parse(text: str, images: tuple[str, ...]) -> Wording:
    segments: list[Segment] = []
    turn_start = turn_stop = 0
    for number, part in enumerate(text.split(BREAK)):
        segment_text = part.strip(" ")
        if segment_text.startswith("("):
            turn_start, segment_text = number, segment_text[1:]
        if segment_text.endswith(")*"):
            turn_stop, segment_text = number + 1, segment_text[:-2]
        segments.append(tuple(_parts(segment_text, images)))
    if any(not segment for segment in segments):
        raise ValueError(f"the wording {text!r} has nothing between two {BREAK}")
    for segment in segments:
        if len(segment) > 1 and any(isinstance(part, Field) and part.is_image for part in segment):
            raise ValueError(f"the wording {text!r} has an image inside a text: put {BREAK} between them")
    if ("(" in text and ")*" in text and turn_stop <= turn_start) or len(re.findall(r"\)\*", text)) > 1:
        raise ValueError(f"the wording {text!r} has turns that do not begin and end with a segment, or several of them")
    return Wording(tuple(segments), turn_start, turn_stop) if turn_stop else Wording(tuple(segments))


def _parts(segment: str, images: tuple[str, ...]) -> Iterator[str | Field]:
    for literal, name, _, _ in Formatter().parse(segment):
        is_spaced = name is not None and literal.endswith(" ")
        if text := literal[:-1] if is_spaced else literal:
            yield text
        if name is not None:
            yield Field(name, name in images, is_spaced)
