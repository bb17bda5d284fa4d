"""Builds the token prompt of a request: what the model continues, and what may follow.

The layouts are those of training, so a prompt is a training document cut where the completion begins (arXiv 2309.02591,
sections 2.2, 3 and 4; arXiv 2201.07520, section 2):

    text to image           </s> TEXT <break>                                        -> image
    text by infill          </s> TEXT <mask:0> TEXT <break> IMAGE </s> <mask:0>    -> text <eoss> <mask:1> text ..
    text, left to right     </s> IMAGE <break> TEXT                                -> text </s>
    infill of an image      </s> TEXT <break> .. <mask:0> .. </s> <mask:0>          -> codes <eoss> <mask:1> codes ..
    continuation            </s> TEXT or IMAGE <break> TEXT or IMAGE ..          -> text and images </s>

Questions, edits and everything else that is tuned on instructions have the prompts of their templates
(instruction_prompt.py).

Retrieved documents, each TEXT <break> IMAGE <break>, follow the first </s>. Where the vocabulary has ids around the
codes of an image, a prompt for an image ends with the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from cm3leon_jax.data.batches.objective import apply_span_masks, positions_in_image
from cm3leon_jax.data.templates.placement import object_list
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.instruction_prompt import Fields, instruction_prompt
from cm3leon_jax.generation.prompt import (
    ANYTHING,
    IMAGE_CODE,
    TEXT_TOKEN,
    Codes,
    Prompt,
    PromptVariant,
    Retrieved,
    positions_of_an_image,
    prefix,
)
from cm3leon_jax.generation.requests import ImageSource, Region, Request
from cm3leon_jax.vocabulary import Vocabulary

# Where a text is to be infilled.
BLANK = "<mask>"


def prompt_of(
    request: Request,
    images: Mapping[ImageSource, Codes | str],
    grid: int,
    vocabulary: Vocabulary,
    max_text_tokens: int,
    sequence_length: int,
    neighbors: Retrieved = (),
) -> Prompt:
    """The prompt of a request, whose images `requests.read_images` has read.

    The image tokenizer has `grid` codes per side; retrieved `neighbors` follow the documents of the request.

    Raises:
      UserError: if an image cannot be read, or the request makes no sense.
    """
    v, most, image_length, text = vocabulary, max_text_tokens, grid * grid, request.prompt
    named = [
        [*v.encode_text(caption), v.break_, *v.encode_image(_codes(images, image)).tolist()]
        for caption, image in request.retrieved
    ]
    retrieved = [*named, *neighbors]
    if request.task == "text_to_image" and not request.objects:
        return text_to_image(text, image_length, v, retrieved)

    def instruction(name: str, fields: Fields, wording: int = 0) -> Prompt:
        return instruction_prompt(name, fields, image_length, most, v, retrieved, wording)

    if request.task == "text_to_image":
        return instruction("objects", {"caption": text, "objects": object_list(request.objects)})
    if request.task == "instruction":
        return instruction(request.template, _fields(request, images), request.wording)
    if request.task == "continue":
        segments = [part if isinstance(part, str) else _codes(images, part) for part in request.segments]
        return continuation(segments, most, image_length, sequence_length, v, retrieved)
    assert request.image is not None
    image = _codes(images, request.image)
    if request.task == "infill":
        return infill(text, image, region_mask(request.region, grid), v, retrieved)
    if request.task == "edit":
        return instruction("edit", {"image": image, "instruction": text})
    if request.task == "infill_text":
        # A space belongs to the word that follows it, so in training it is masked with that word.
        return text_infill(text.replace(f" {BLANK}", BLANK), image, most, v, retrieved)
    if BLANK in text:
        raise UserError(f"the prompt of the task {request.task} holds {BLANK}: the task infill_text fills it")
    is_left_to_right = request.order == "left_to_right"
    if request.task == "vqa":
        name = "question_after_image" if is_left_to_right else "question"
        return instruction(name, {"image": image, "question": text})
    if text.strip():
        name = "caption_after_image" if is_left_to_right else "instructed_caption"
        return instruction(name, {"image": image, "instruction": text})
    if is_left_to_right:
        return text_after_image(image, most, v, retrieved=retrieved)
    return text_infill(BLANK, image, most, v, retrieved)


def _fields(request: Request, images: Mapping[ImageSource, Codes | str]) -> Fields:
    """The fields of a request of the task instruction, with the codes of their images."""

    def value(found: str | ImageSource) -> str | Codes:
        return found if isinstance(found, str) else _codes(images, found)

    return {
        name: tuple(map(value, found)) if isinstance(found, tuple) else value(found) for name, found in request.fields
    }


def _codes(images: Mapping[ImageSource, Codes | str], image: ImageSource) -> Codes:
    found = images[image]
    if isinstance(found, str):
        raise UserError(found)
    return found


def region_mask(region: Region, grid: int) -> Bool[np.ndarray, "codes"]:
    """The codes of an image that a region (left, top, right, bottom, as fractions of the sides) covers."""
    left, top, right, bottom = (round(fraction * grid) for fraction in region)
    mask = np.zeros((grid, grid), bool)
    mask[top:bottom, left:right] = True
    return mask.ravel()


def text_to_image(text: str, image_length: int, vocabulary: Vocabulary, retrieved: Retrieved = ()) -> Prompt:
    """An image for a text.

    Guided away from `</s> <mask:0> <break>`, or, with retrieved documents, from those documents alone.
    """
    v = vocabulary
    before = prefix(retrieved, v)
    without = before if retrieved else (v.end, v.mask(0), v.break_)
    return Prompt(
        variants=tuple(
            PromptVariant.of((*each, *v.begin_image), v)
            for each in ((*before, *v.encode_text(text), v.break_), without)
        ),
        plan=(IMAGE_CODE,) * image_length,
        plan_image_positions=positions_of_an_image(image_length),
    )


def text_infill(
    text: str, codes: Codes, max_text_tokens: int, vocabulary: Vocabulary, retrieved: Retrieved = ()
) -> Prompt:
    """The texts that belong where `text` says `<mask>`, before an image."""
    v = vocabulary
    parts = text.split(BLANK)
    num_spans = len(parts) - 1
    if not 1 <= num_spans <= v.num_masks:
        raise UserError(f"the text {text!r} has {num_spans} {BLANK}: write 1 to {v.num_masks} where text is missing")
    body = v.encode_text(parts[0])
    for index, part in enumerate(parts[1:]):
        body += [v.mask(index), *v.encode_text(part)]
    image = v.encode_image(codes).tolist()
    # Each text ends with <eoss>; all but the first begin with their mask.
    most = max_text_tokens if num_spans == 1 else num_spans * (max_text_tokens + 2)
    return Prompt(
        variants=(PromptVariant.of((*prefix(retrieved, v), *body, v.break_, *image, v.end, v.mask(0)), v),),
        plan=(TEXT_TOKEN,) * most,
        plan_image_positions=(0,) * most,
        stop=v.eoss,
        num_spans=num_spans,
    )


def text_after_image(codes: Codes, max_text_tokens: int, vocabulary: Vocabulary, retrieved: Retrieved = ()) -> Prompt:
    """The text that follows an image, left to right."""
    v = vocabulary
    tokens = (*prefix(retrieved, v), *v.encode_image(codes).tolist(), v.break_)
    return Prompt(
        variants=(PromptVariant.of(tokens, v),),
        plan=(TEXT_TOKEN,) * max_text_tokens,
        plan_image_positions=(0,) * max_text_tokens,
        stop=v.end,
    )


def infill(
    text: str, codes: Codes, masked: Bool[np.ndarray, "codes"], vocabulary: Vocabulary, retrieved: Retrieved = ()
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
    before = (*prefix(retrieved, v), *v.encode_text(text), v.break_)
    document = np.array([*before, *v.encode_image(codes), v.end])
    first = len(before) + len(v.begin_image)
    masked_document = apply_span_masks(
        document, positions_in_image(document, v), [(first + start, first + stop) for start, stop in spans], v
    )
    # The prompt ends after the first mask of the tail; the last `<eoss>` ends the completion and need not be sampled.
    prompted = int(np.flatnonzero(masked_document[0] == v.end)[1]) + 2
    tokens, image_positions = (part.tolist() for part in masked_document)
    is_code = v.is_image(masked_document[0][prompted:-1]).tolist()
    return Prompt(
        variants=(PromptVariant(tuple(tokens[:prompted]), tuple(image_positions[:prompted])),),
        plan=tuple(IMAGE_CODE if code else t for code, t in zip(is_code, tokens[prompted:-1], strict=True)),
        plan_image_positions=tuple(image_positions[prompted:-1]),
    )


def continuation(
    segments: Sequence[str | Codes],
    max_text_tokens: int,
    image_length: int,
    sequence_length: int,
    vocabulary: Vocabulary,
    retrieved: Retrieved = (),
) -> Prompt:
    """What follows a document's first segments: the rest of the last text, and further texts and images."""
    v = vocabulary
    tokens = list(prefix(retrieved, v))
    for index, segment in enumerate(segments):
        tokens += [v.break_] * (index > 0)
        tokens += v.encode_text(segment) if isinstance(segment, str) else v.encode_image(segment).tolist()
    # Room for one image and one text, each after a break, or what the positions leave of it.
    most = min(max_text_tokens + v.image_segment_length(image_length) + 2, max(1, sequence_length - len(tokens)))
    return Prompt(
        variants=(PromptVariant.of(tokens, v),),
        plan=(ANYTHING,) * most,
        plan_image_positions=(0,) * most,
        stop=v.end,
        image_length=image_length,
    )


def merge_infill(
    codes: Codes, masked: Bool[np.ndarray, "codes"], completion: Sequence[int], vocabulary: Vocabulary
) -> Codes:
    """The image with an infill's completion at the masked positions."""
    ids = np.asarray(completion, np.int32)
    result = codes.copy()
    result[masked] = vocabulary.decode_image(ids[vocabulary.is_image(ids)])
    return result


def infill_texts(completion: Sequence[int], vocabulary: Vocabulary) -> list[str]:
    """The texts of a text infill's completion, in the order of their blanks."""
    texts: list[list[int]] = [[]]
    for token in completion:
        if token == vocabulary.eoss:
            texts.append([])
        else:
            texts[-1].append(token)
    return [vocabulary.decode_text(ids).strip() for ids in texts]


def split_segments(completion: Sequence[int], vocabulary: Vocabulary) -> list[str | Codes]:
    """The texts and images (as codes) of a continuation, in order."""
    ids = np.asarray(completion, np.int32)
    parts = np.split(ids, np.flatnonzero(ids == vocabulary.break_))
    parts = [part[part != vocabulary.break_] for part in parts]
    images = [vocabulary.image_of_segment(part) for part in parts]
    return [
        vocabulary.decode_text(part.tolist()) if image is None else image
        for part, image in zip(parts, images, strict=True)
        if len(part)
    ]
