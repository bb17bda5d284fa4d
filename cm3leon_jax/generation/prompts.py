"""What each task gives the model to continue, and what it may answer.

The layouts are those of training, so a prompt is a training document cut where the answer begins (arXiv 2309.02591,
sections 2.2 and 3; arXiv 2201.07520, section 2):

    text to image           </s> TEXT <break>                                   -> picture
    caption, left to right  </s> PICTURE <break>                                -> text </s>
    caption, by infill      </s> <mask:0> <break> PICTURE </s> <mask:0>         -> text <eoss>
    infill of a picture     </s> TEXT <break> .. <mask:0> .. </s> <mask:0>      -> codes <eoss> <mask:1> codes ..
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from cm3leon_jax.data.objective import move_spans, picture_places
from cm3leon_jax.errors import UserError
from cm3leon_jax.vocabulary import Vocabulary

# Entries of an answer's plan that are not ids.
IMAGE_CODE, TEXT_TOKEN = -1, -2


@dataclass(frozen=True)
class Prompt:
    """Ids to continue, and the plan of the answer."""

    tokens: tuple[int, ...]
    # The same without the text, for guidance; empty where there is nothing to guide away from.
    unconditional: tuple[int, ...]
    # One entry a generated token: IMAGE_CODE (any code), TEXT_TOKEN (any text token, or `stop`, which ends the answer),
    # or the id of a mark that must stand there.
    plan: tuple[int, ...]
    # The picture places (objective.picture_places) of the prompt's tokens and of the answer's.
    places: tuple[int, ...]
    plan_places: tuple[int, ...]
    stop: int = -1


def text_to_image(text: str, image_length: int, vocabulary: Vocabulary) -> Prompt:
    """A picture for a text; guided away from `</s> <mask:0> <break>`."""
    v = vocabulary
    text_ids = v.encode_text(text)
    return Prompt(
        tokens=(v.end, *text_ids, v.break_),
        unconditional=(v.end, v.mask(0), v.break_),
        plan=(IMAGE_CODE,) * image_length,
        places=(0,) * (len(text_ids) + 2),
        plan_places=tuple(range(2, image_length + 2)),
    )


def caption(
    codes: Int[np.ndarray, "codes"], max_text_tokens: int, vocabulary: Vocabulary, by_infill: bool = True
) -> Prompt:
    """A text for a picture: what stood behind the mask in front of it, or what follows it."""
    v = vocabulary
    picture = v.encode_image(codes).tolist()
    if by_infill:
        tokens, stop = (v.end, v.mask(0), v.break_, *picture, v.end, v.mask(0)), v.eoss
    else:
        tokens, stop = (v.end, *picture, v.break_), v.end
    return Prompt(
        tokens=tokens,
        unconditional=(),
        plan=(TEXT_TOKEN,) * max_text_tokens,
        places=tuple(picture_places(np.array(tokens), v).tolist()),
        plan_places=(0,) * max_text_tokens,
        stop=stop,
    )


def infill(
    text: str, codes: Int[np.ndarray, "codes"], masked: Bool[np.ndarray, "codes"], vocabulary: Vocabulary
) -> Prompt:
    """The masked codes of a picture, given the rest and a text; each run of masked codes is a span."""
    v = vocabulary
    if not masked.any():
        raise UserError("an infill prompt masks nothing: its region covers no code of the picture")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.astype(int), [0]])))
    spans = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    if len(spans) > v.num_masks:
        raise UserError(f"an infill region makes {len(spans)} spans, but the vocabulary has {v.num_masks} masks")
    text_ids = v.encode_text(text)
    document = np.array([v.end, *text_ids, v.break_, *v.encode_image(codes), v.end])
    first = len(text_ids) + 2
    places = picture_places(document, v)
    moved = move_spans(document, places, [(first + start, first + stop) for start, stop in spans], v)
    # The prompt ends behind the first mark of the tail; the last `<eoss>` ends the answer and needs no drawing.
    prompted = int(np.flatnonzero(moved[0] == v.end)[1]) + 2
    tokens, places = (part.tolist() for part in moved)
    is_code = v.is_image(moved[0][prompted:-1]).tolist()
    return Prompt(
        tokens=tuple(tokens[:prompted]),
        unconditional=(),
        plan=tuple(IMAGE_CODE if code else t for code, t in zip(is_code, tokens[prompted:-1], strict=True)),
        places=tuple(places[:prompted]),
        plan_places=tuple(places[prompted:-1]),
    )


def filled(
    codes: Int[np.ndarray, "codes"], masked: Bool[np.ndarray, "codes"], answer: Sequence[int], vocabulary: Vocabulary
) -> Int[np.ndarray, "codes"]:
    """The picture with an infill's answer in the masked places."""
    ids = np.asarray(answer, np.int32)
    result = codes.copy()
    result[masked] = vocabulary.decode_image(ids[vocabulary.is_image(ids)])
    return result
