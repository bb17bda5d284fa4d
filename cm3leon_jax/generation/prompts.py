"""What each task gives the model to continue, and what it may answer.

The layouts are those of training, so a prompt is a training document cut where the answer begins (arXiv 2309.02591,
sections 2.2, 3 and 4; arXiv 2201.07520, section 2):

    text to image           </s> TEXT <break>                                        -> image
    text by infill          </s> TEXT <mask:0> TEXT <break> IMAGE </s> <mask:0>    -> text <eoss> <mask:1> text ..
    text, left to right     </s> IMAGE <break> TEXT                                -> text </s>
    infill of an image     </s> TEXT <break> .. <mask:0> .. </s> <mask:0>           -> codes <eoss> <mask:1> codes ..
    edit                    </s> TASK <break> IMAGE <break> INSTRUCTION <break>    -> image
    continuation            </s> TEXT or IMAGE <break> TEXT or IMAGE ..          -> text and images </s>

Retrieved documents, each TEXT <break> IMAGE <break>, stand behind the first </s>.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from cm3leon_jax.data.batches.objective import apply_span_masks, positions_in_image
from cm3leon_jax.data.templates.layouts import EDIT_TASK
from cm3leon_jax.errors import UserError
from cm3leon_jax.vocabulary import Vocabulary

# Entries of an answer's plan that are not ids: any image code; any text token, or the mark that ends the text; whatever
# may come next in a document.
IMAGE_CODE, TEXT_TOKEN, ANYTHING = -1, -2, -3

# Where a text is to be filled in.
BLANK = "<mask>"

# The ids of a retrieved document: TEXT <break> IMAGE.
Retrieved = Sequence[Sequence[int]]


@dataclass(frozen=True)
class PromptVariant:
    """Ids to continue, and the image places (objective.positions_in_image) that belong to them."""

    tokens: tuple[int, ...]
    image_positions: tuple[int, ...]

    @classmethod
    def of(cls, tokens: Sequence[int], vocabulary: Vocabulary) -> PromptVariant:
        """A stream of unmasked images."""
        ids = tuple(int(token) for token in tokens)
        return cls(ids, tuple(positions_in_image(np.array(ids), vocabulary).tolist()))


@dataclass(frozen=True)
class Prompt:
    """What is continued, what guidance compares it with, and the plan of the answer."""

    # The prompt; then, where there is something to guide away from, the same without its text; then, for an edit,
    # without text and image.
    variants: tuple[PromptVariant, ...]
    # One entry a generated token: IMAGE_CODE, TEXT_TOKEN, ANYTHING, or the id of a mark that must stand there.
    plan: tuple[int, ...]
    # The image places of the answer, except where the plan says ANYTHING: those follow from what was drawn.
    plan_image_positions: tuple[int, ...]
    # Ends a text of the answer, and the answer itself after `num_spans` texts.
    stop: int = -1
    num_spans: int = 1
    # Codes of an image, where the answer may hold whole ones.
    image_length: int = 0


def text_to_image(text: str, image_length: int, vocabulary: Vocabulary, retrieved: Retrieved = ()) -> Prompt:
    """An image for a text.

    Guided away from `</s> <mask:0> <break>`, or, with retrieved documents, from those documents alone.
    """
    v = vocabulary
    front = _front(retrieved, v)
    without = front if retrieved else (v.end, v.mask(0), v.break_)
    return Prompt(
        variants=(PromptVariant.of((*front, *v.encode_text(text), v.break_), v), PromptVariant.of(without, v)),
        plan=(IMAGE_CODE,) * image_length,
        plan_image_positions=_positions_of_an_image(image_length),
    )


def text_infill(
    text: str,
    codes: Int[np.ndarray, "codes"],
    max_text_tokens: int,
    vocabulary: Vocabulary,
    retrieved: Retrieved = (),
) -> Prompt:
    """The texts that belong where `text` says `<mask>`, in front of an image."""
    v = vocabulary
    parts = text.split(BLANK)
    num_spans = len(parts) - 1
    if not 1 <= num_spans <= v.num_masks:
        raise UserError(f"the text {text!r} has {num_spans} {BLANK}: write 1 to {v.num_masks} where text is missing")
    body = v.encode_text(parts[0])
    for index, part in enumerate(parts[1:]):
        body += [v.mask(index), *v.encode_text(part)]
    image = v.encode_image(codes).tolist()
    # Each text ends with <eoss>; all but the first begin with their mark.
    most = num_spans * (max_text_tokens + 2)
    return Prompt(
        variants=(PromptVariant.of((*_front(retrieved, v), *body, v.break_, *image, v.end, v.mask(0)), v),),
        plan=(TEXT_TOKEN,) * (max_text_tokens if num_spans == 1 else most),
        plan_image_positions=(0,) * (max_text_tokens if num_spans == 1 else most),
        stop=v.eoss,
        num_spans=num_spans,
    )


def text_after_image(
    codes: Int[np.ndarray, "codes"],
    max_text_tokens: int,
    vocabulary: Vocabulary,
    beginning: str = "",
    retrieved: Retrieved = (),
) -> Prompt:
    """The text that follows an image, left to right; `beginning` is given."""
    v = vocabulary
    image = v.encode_image(codes).tolist()
    tokens = (*_front(retrieved, v), *image, v.break_, *v.encode_text(beginning))
    return Prompt(
        variants=(PromptVariant.of(tokens, v),),
        plan=(TEXT_TOKEN,) * max_text_tokens,
        plan_image_positions=(0,) * max_text_tokens,
        stop=v.end,
    )


def infill(
    text: str,
    codes: Int[np.ndarray, "codes"],
    masked: Bool[np.ndarray, "codes"],
    vocabulary: Vocabulary,
    retrieved: Retrieved = (),
) -> Prompt:
    """The masked codes of an image, given the rest and a text; each run of masked codes is a span."""
    v = vocabulary
    if not masked.any():
        raise UserError("an infill prompt masks nothing: its region covers no code of the image; make it larger")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.astype(int), [0]])))
    spans = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    if len(spans) > v.num_masks:
        raise UserError(
            f"an infill region makes {len(spans)} spans, but the vocabulary has {v.num_masks} masks: make it less "
            "high, or as wide as the image, which makes it one span"
        )
    before = (*_front(retrieved, v), *v.encode_text(text), v.break_)
    document = np.array([*before, *v.encode_image(codes), v.end])
    moved = apply_span_masks(
        document,
        positions_in_image(document, v),
        [(len(before) + start, len(before) + stop) for start, stop in spans],
        v,
    )
    # The prompt ends behind the first mark of the tail; the last `<eoss>` ends the answer and needs no drawing.
    prompted = int(np.flatnonzero(moved[0] == v.end)[1]) + 2
    tokens, image_positions = (part.tolist() for part in moved)
    is_code = v.is_image(moved[0][prompted:-1]).tolist()
    return Prompt(
        variants=(PromptVariant(tuple(tokens[:prompted]), tuple(image_positions[:prompted])),),
        plan=tuple(IMAGE_CODE if code else t for code, t in zip(is_code, tokens[prompted:-1], strict=True)),
        plan_image_positions=tuple(image_positions[prompted:-1]),
    )


def edit(
    instruction: str, codes: Int[np.ndarray, "codes"], vocabulary: Vocabulary, retrieved: Retrieved = ()
) -> Prompt:
    """The image changed as the instruction says; guided by both, each with its own weight."""
    v = vocabulary
    image_only = (*_front(retrieved, v), *v.encode_text(EDIT_TASK), v.break_, *v.encode_image(codes).tolist(), v.break_)
    full = (*image_only, *v.encode_text(instruction), v.break_)
    nothing = (v.end, v.mask(0), v.break_)
    return Prompt(
        variants=(PromptVariant.of(full, v), PromptVariant.of(image_only, v), PromptVariant.of(nothing, v)),
        plan=(IMAGE_CODE,) * len(codes),
        plan_image_positions=_positions_of_an_image(len(codes)),
    )


def continuation(
    segments: Sequence[str | Int[np.ndarray, "codes"]],
    most_tokens: int,
    image_length: int,
    vocabulary: Vocabulary,
    retrieved: Retrieved = (),
) -> Prompt:
    """What follows a document's first segments: the rest of the last text, and further texts and images."""
    v = vocabulary
    tokens = list(_front(retrieved, v))
    for index, segment in enumerate(segments):
        tokens += [v.break_] * (index > 0)
        tokens += v.encode_text(segment) if isinstance(segment, str) else v.encode_image(segment).tolist()
    return Prompt(
        variants=(PromptVariant.of(tokens, v),),
        plan=(ANYTHING,) * most_tokens,
        plan_image_positions=(0,) * most_tokens,
        stop=v.end,
        image_length=image_length,
    )


def merge_infill(
    codes: Int[np.ndarray, "codes"], masked: Bool[np.ndarray, "codes"], answer: Sequence[int], vocabulary: Vocabulary
) -> Int[np.ndarray, "codes"]:
    """The image with an infill's answer in the masked places."""
    ids = np.asarray(answer, np.int32)
    result = codes.copy()
    result[masked] = vocabulary.decode_image(ids[vocabulary.is_image(ids)])
    return result


def infill_texts(answer: Sequence[int], vocabulary: Vocabulary) -> list[str]:
    """The texts of a text infill's answer, in the order of their blanks."""
    texts: list[list[int]] = [[]]
    for token in answer:
        if token == vocabulary.eoss:
            texts.append([])
        else:
            texts[-1].append(token)
    return [vocabulary.decode_text(ids).strip() for ids in texts]


def split_segments(answer: Sequence[int], vocabulary: Vocabulary) -> list[str | Int[np.ndarray, "codes"]]:
    """The texts and images (as codes) of a continuation's answer, in order."""
    ids = np.asarray(answer, np.int32)
    parts = np.split(ids, np.flatnonzero(ids == vocabulary.break_))
    parts = [part[part != vocabulary.break_] for part in parts]
    return [
        vocabulary.decode_image(part) if vocabulary.is_image(part).all() else vocabulary.decode_text(part.tolist())
        for part in parts
        if len(part)
    ]


def _front(retrieved: Retrieved, vocabulary: Vocabulary) -> tuple[int, ...]:
    documents = [token for document in retrieved for token in (*document, vocabulary.break_)]
    return (vocabulary.end, *documents)


def _positions_of_an_image(image_length: int) -> tuple[int, ...]:
    return tuple(range(2, image_length + 2))
