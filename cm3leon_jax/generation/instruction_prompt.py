"""Builds the prompt of an instruction from its template: the document of training, cut where the target begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from cm3leon_jax.data.templates.template import Field, Template
from cm3leon_jax.data.templates.tokenized import TokenizedTemplate, load_template
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.prompt import (
    IMAGE_CODE,
    TEXT_TOKEN,
    Codes,
    Prompt,
    PromptVariant,
    Retrieved,
    positions_of_an_image,
    prefix,
)
from cm3leon_jax.vocabulary import Vocabulary

# The value of a field: a text or the codes of an image, and of a field of the turns one for each turn.
Value = str | Codes
Fields = Mapping[str, Value | Sequence[Value]]


def instruction_prompt(
    name: str,
    fields: Fields,
    image_length: int,
    max_text_tokens: int,
    vocabulary: Vocabulary,
    retrieved: Retrieved = (),
    wording: int = 0,
) -> Prompt:
    """The prompt of an instruction in a wording of the template `name`: what its target is, given its other fields.

    An image that ends the document is guided away from the documents without its conditions (`Template.drops`). A text
    that ends it is continued left to right, one that something follows is infilled. Fields of turns are sequences, that
    of the target shorter by one: its last value is what is asked for.

    Raises:
      UserError: if a field is missing, is of another kind, or the template has no such field.
    """
    v, template = vocabulary, load_template(name, vocabulary)
    target = template.template.targets[-1]
    given = _by_turn(template.template, name, fields, target)
    before = prefix(retrieved, v)

    def tokens(asked: Sequence[int], dropped: Sequence[str] = ()) -> list[int]:
        values = _values(template, given, np.array(asked, np.int32), v)
        return template.assemble(values, wording, dropped).tokens.tolist()

    if wording >= template.num_wordings:
        raise UserError(f"wording {wording}: the template {name!r} has {template.num_wordings}, counted from 0")
    last = template.template.parsed[wording].segments[-1][-1]
    ends_in_target = isinstance(last, Field) and last.name == target
    if target in template.template.images:
        if not ends_in_target:
            raise UserError(f"the template {name!r} does not end with {{{target}}}: an image is generated at the end")
        variants = [(*before, *tokens(v.begin_image))]
        for dropped in template.drops:
            everything = dropped == template.drops[-1]
            without = (
                (*before, *v.begin_image) if everything and retrieved else (v.end, *tokens(v.begin_image, dropped))
            )
            variants.append(without)
        return Prompt(
            variants=tuple(PromptVariant.of(variant, v) for variant in variants[:3]),
            plan=(IMAGE_CODE,) * image_length,
            plan_image_positions=positions_of_an_image(image_length),
        )
    if ends_in_target:
        variant, stop = (*before, *tokens(())), v.end
    else:
        variant, stop = (*before, *tokens((v.mask(0),)), v.end, v.mask(0)), v.eoss
    return Prompt(
        variants=(PromptVariant.of(variant, v),),
        plan=(TEXT_TOKEN,) * max_text_tokens,
        plan_image_positions=(0,) * max_text_tokens,
        stop=stop,
    )


def _by_turn(template: Template, name: str, fields: Fields, target: str) -> dict[tuple[str, int], Value | None]:
    """The value of each field and turn; None for what is asked for."""
    if unknown := [field for field in fields if field not in template.fields]:
        raise UserError(f"no such field {unknown[0]:.60}: the template {name!r} has {', '.join(template.fields)}")
    turn_fields = {field.name for field in template.in_turns}
    found: dict[tuple[str, int], Value | None] = {}
    for field in template.fields:
        given: list[Value | None] = list(_given(template, name, fields, field, field in turn_fields, target))
        given += [None] * (field == target)
        found |= {(field, turn): value for turn, value in enumerate(given)}
    counts = {field: sum(key[0] == field for key in found) for field in sorted(turn_fields)}
    if len(set(counts.values())) > 1:
        raise UserError(
            f"the turns of the template {name!r} do not fit each other ({counts}, the last of {target} asked for)"
        )
    return found


def _given(template: Template, name: str, fields: Fields, field: str, has_turns: bool, target: str) -> Sequence[Value]:
    """What is given of a field: as many values as it has turns, one outside of turns, none of a target."""
    value = fields.get(field)
    if value is None and field == target:
        return ()
    if value is None:
        raise UserError(f"the template {name!r} needs the field {field}")
    if isinstance(value, list | tuple) != has_turns or (field == target and not has_turns):
        what = "a list of values, one for each turn" if has_turns else "one value"
        fault = "is what is asked for: leave it out" if field == target and not has_turns else f"takes {what}"
        raise UserError(f"the field {field} of the template {name!r} {fault}")
    values = [value] if isinstance(value, str | np.ndarray) else list(value)
    is_image = field in template.images
    if any(isinstance(each, str) == is_image for each in values):
        raise UserError(f"the field {field} of the template {name!r} is {'an image' if is_image else 'a text'}")
    return values


def _values(
    template: TokenizedTemplate,
    given: Mapping[tuple[str, int], Value | None],
    asked: Int[np.ndarray, "_"],
    vocabulary: Vocabulary,
) -> list[Int[np.ndarray, "_"]]:
    """The ids of the stored fields, with `asked` for what is asked for."""
    values = []
    for field, turn in template.template.stored(1 + max(turn for _, turn in given)):
        value = given[field.name, turn]
        if value is None:
            values.append(asked)
        elif isinstance(value, str):
            values.append(np.array(template.encode(field, value), np.int32))
        else:
            values.append(np.asarray(vocabulary.encode_image(value), np.int32))
    return values
