"""A template in the ids of a vocabulary: puts the stored fields of an example into one of its wordings.

A field is tokenized apart from the text around it, together with the space before it, so that the length of a
document in any wording follows from the lengths of its fields, and batches can be planned without reading them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8

from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.data.templates.template import Field, Template, Wording
from cm3leon_jax.documents import Role
from cm3leon_jax.errors import UserError
from cm3leon_jax.vocabulary import Vocabulary


@dataclass(frozen=True)
class Assembled:
    """A document in one of its wordings."""

    tokens: Int32[np.ndarray, "n"]
    # The role of each token.
    roles: UInt8[np.ndarray, "n"]
    # That of the `</s>` after it.
    end_role: Role
    # The targets that something follows, as (start, stop): what an infill fills.
    inner_targets: list[tuple[int, int]]
    # Where each stored field is, as (start, stop); fields that this wording lacks are absent.
    fields: dict[int, tuple[int, int]]


class TokenizedTemplate:
    """The wordings of a template as ids."""

    def __init__(self, name: str, template: Template, vocabulary: Vocabulary) -> None:
        self.name, self.template, self._vocabulary = name, template, vocabulary
        self._once = {field: number for number, field in enumerate(template.once)}
        self._in_turns = {field: number for number, field in enumerate(template.in_turns)}
        texts = {part for w in template.parsed for segment in w.segments for part in segment if isinstance(part, str)}
        self._texts = {text: np.array(vocabulary.encode_text(text), np.int32) for text in texts}
        if any(self._inner_targets(wording) > vocabulary.num_masks for wording in template.parsed):
            raise UserError(
                f"the template {name!r} has more targets before other segments than the vocabulary has masks "
                f"({vocabulary.num_masks}): raise config.vocabulary.num_masks, or put its targets last"
            )
        ends_in_image = all(_ends_in_target_image(wording, template) for wording in template.parsed)
        everything = tuple(name for name in template.fields if name not in template.targets)
        # The conditions that can be dropped together.
        self.drops: tuple[tuple[str, ...], ...] = (*template.drops, everything) if ends_in_image else ()

    @property
    def num_wordings(self) -> int:
        return len(self.template.wordings)

    def num_turns(self, num_fields: int) -> int:
        """How many turns so many stored fields make."""
        return (num_fields - len(self._once)) // len(self._in_turns) if self._in_turns else 0

    def encode(self, field: Field, text: str) -> list[int]:
        """The ids of a text as a stored field has them."""
        return self._vocabulary.encode_text(" " * field.is_spaced + text.strip())

    def lengths(
        self, once: Int64[np.ndarray, "n once"], in_turns: Int64[np.ndarray, "n turn"], turns: Int64[np.ndarray, "n"]
    ) -> Int64[np.ndarray, "n wordings"]:
        """Tokens of documents in each wording.

        Args:
          once: the lengths of the stored fields outside of turns.
          in_turns: the summed lengths of each stored field of the turns.
          turns: how many turns each document has.
        """
        return np.stack([self._lengths(wording, once, in_turns, turns) for wording in self.template.parsed], axis=1)

    def _lengths(
        self,
        wording: Wording,
        once: Int64[np.ndarray, "n once"],
        in_turns: Int64[np.ndarray, "n turn"],
        turns: Int64[np.ndarray, "n"],
    ) -> Int64[np.ndarray, "n"]:
        of_turn = self._num_given(wording, wording.turn_start, wording.turn_stop)
        outside = self._num_given(wording, 0, len(wording.segments)) - of_turn
        # A `<break>` after every segment but the last.
        found = outside - 1 + of_turn * turns
        found += once[:, [self._once[field] for field in wording.once]].sum(1)
        return found + in_turns[:, [self._in_turns[field] for field in wording.in_turns]].sum(1)

    def length(self, field_lengths: Sequence[int]) -> int:
        """Tokens of a document in the first wording, from the lengths of its stored fields."""
        num_once, turns = len(self._once), self.num_turns(len(field_lengths))
        once, rest = np.array(field_lengths[:num_once], np.int64), np.array(field_lengths[num_once:], np.int64)
        in_turns = rest.reshape(turns, len(self._in_turns)).sum(0)
        return int(self._lengths(self.template.parsed[0], once[None], in_turns[None], np.array([turns]))[0])

    def num_inner_targets(self, turns: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n wordings"]:
        """How many targets of documents of so many turns are followed by something, in each wording."""
        return np.stack([self._inner_targets(wording, turns) for wording in self.template.parsed], axis=1)

    def assemble(
        self, values: Sequence[Integer[np.ndarray, "_"]], wording: int = 0, dropped: Sequence[str] = ()
    ) -> Assembled:
        """Puts the ids of the stored fields into a wording.

        A dropped field is replaced by a mask. Where all but the targets are dropped, the document is `<mask:0>
        <break>` and the last target, as where the objective masks the caption of an image.
        """
        v = self._vocabulary
        parsed = self.template.parsed[wording]
        if self.drops and tuple(dropped) == self.drops[-1]:
            last = self._fields_of_segment(parsed, len(parsed.segments) - 1, self.num_turns(len(values)) - 1)[-1][1]
            image = np.asarray(values[last], np.int32)
            tokens = np.concatenate([[v.mask(0), v.break_], image], dtype=np.int32)
            roles = np.repeat([Role.CONTEXT, Role.TARGET], [2, len(image)]).astype(np.uint8)
            return Assembled(tokens, roles, Role.TARGET, [], {last: (2, len(tokens))})
        return _Assembly(self.template, v).run(self._parts(parsed, values), dropped)

    def _parts(self, wording: Wording, values: Sequence[np.ndarray]) -> list[list[_Part]]:
        """The segments with the ids of their texts and fields, turns written out."""
        turns = [*range(self.num_turns(len(values)))] if wording.turn_stop else []
        order = [(number, 0) for number in range(wording.turn_start)]
        order += [(number, turn) for turn in turns for number in range(wording.turn_start, wording.turn_stop)]
        order += [(number, 0) for number in range(wording.turn_stop, len(wording.segments))]
        result: list[list[_Part]] = []
        for number, turn in order:
            indices = dict(self._fields_of_segment(wording, number, turn))
            result.append(
                [
                    _Part(self._texts[part])
                    if isinstance(part, str)
                    else _Part(np.asarray(values[indices[part]], np.int32), part, indices[part])
                    for part in wording.segments[number]
                ]
            )
        return result

    def _fields_of_segment(self, wording: Wording, number: int, turn: int) -> list[tuple[Field, int]]:
        """The fields of a segment, each with its number among the stored ones."""
        is_turn = wording.turn_start <= number < wording.turn_stop
        first = len(self._once) + turn * len(self._in_turns)
        return [
            (part, first + self._in_turns[part] if is_turn else self._once[part])
            for part in wording.segments[number]
            if isinstance(part, Field)
        ]

    def _num_given(self, wording: Wording, start: int, stop: int) -> int:
        """Ids of the texts of some segments, and of a `<break>` for each segment."""
        segments = wording.segments[start:stop]
        return len(segments) + sum(len(self._texts[part]) for s in segments for part in s if isinstance(part, str))

    def _inner_targets(self, wording: Wording, turns: int | np.ndarray = 1) -> int | np.ndarray:
        targets = self.template.targets
        once = sum(field.name in targets for field in wording.once)
        in_turns = sum(field.name in targets for field in wording.in_turns)
        last = wording.segments[-1][-1]
        return once + in_turns * turns - int(isinstance(last, Field) and last.name in targets)


@dataclass(frozen=True)
class _Part:
    ids: np.ndarray
    # Of a field: what it is, and its number among the stored ones.
    field: Field | None = None
    number: int = -1


class _Assembly:
    """One document while its parts are put together."""

    def __init__(self, template: Template, vocabulary: Vocabulary) -> None:
        self._template, self._vocabulary = template, vocabulary
        self._ids: list[np.ndarray] = []
        self._roles: list[np.ndarray] = []
        self._length = self._num_dropped = 0
        self._image: np.ndarray | None = None
        self._targets: list[tuple[int, int]] = []
        self._fields: dict[int, tuple[int, int]] = {}

    def run(self, segments: list[list[_Part]], dropped: Sequence[str]) -> Assembled:
        break_ = np.array([self._vocabulary.break_], np.int32)
        for number, segment in enumerate(segments):
            is_last, has_target = number == len(segments) - 1, False
            for part in segment:
                if part.field is None:
                    # A full stop after the answer ends it.
                    self._add(part.ids, Role.TARGET if is_last and has_target else Role.INSTRUCTION)
                    continue
                has_target |= part.field.name in self._template.targets
                self._add_field(part, part.field, part.field.name in dropped)
            if not is_last:
                ends_target = segment[-1].field is not None and has_target
                self._add(break_, Role.TARGET if ends_target else Role.CONTEXT)
        inner = [(start, stop) for start, stop in self._targets if stop < self._length]
        end_role = Role.TARGET if has_target else Role.CONTEXT
        return Assembled(np.concatenate(self._ids), np.concatenate(self._roles), end_role, inner, self._fields)

    def _add(self, ids: np.ndarray, role: Role) -> None:
        self._ids.append(ids)
        self._roles.append(np.full(len(ids), role, np.uint8))
        self._length += len(ids)

    def _add_field(self, part: _Part, field: Field, is_dropped: bool) -> None:
        if is_dropped:
            self._add(np.array([self._vocabulary.mask(self._num_dropped)], np.int32), Role.CONTEXT)
            self._num_dropped += 1
            return
        start = self._length
        if field.name in self._template.targets:
            self._add(part.ids, Role.TARGET)
            self._targets.append((start, self._length))
            if self._template.is_edit and self._image is not None and len(self._image) == len(part.ids):
                self._roles[-1][part.ids != self._image] = Role.CHANGED
        else:
            is_context = field.is_image or field.name in self._template.contexts
            self._add(part.ids, Role.CONTEXT if is_context else Role.INSTRUCTION)
        if field.is_image:
            self._image = part.ids
        self._fields[part.number] = (start, self._length)


@functools.lru_cache(maxsize=256)
def load_template(name: str, vocabulary: Vocabulary) -> TokenizedTemplate:
    """The template that is registered under a name. Raises a `UserError` if there is none, or it makes no sense."""
    template = TEMPLATES.load(name)
    if not isinstance(template, Template):
        raise UserError(f"the template {name!r} is registered as a {type(template).__name__}: register a Template")
    return TokenizedTemplate(name, template, vocabulary)


def _ends_in_target_image(wording: Wording, template: Template) -> bool:
    last = wording.segments[-1][-1]
    return isinstance(last, Field) and last.is_image and last.name in template.targets
