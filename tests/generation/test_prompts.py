"""Prompts are training documents cut where the answer begins."""

import numpy as np
import pytest

from cm3leon_jax.data.batches.objective import apply_span_masks, positions_in_image
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation import prompts

TEXT, LENGTH = "a handwritten seven", 16


@pytest.fixture(params=["vocabulary", "framed_vocabulary"])
def parts(request):
    v = request.getfixturevalue(request.param)
    codes = np.arange(LENGTH)
    document = np.array([v.end, *v.encode_text(TEXT), v.break_, *v.encode_image(codes), v.end])
    return v, codes, document, len(v.encode_text(TEXT))


def masked(document, spans, v) -> tuple[list[int], list[int]]:
    tokens, image_positions = apply_span_masks(document, positions_in_image(document, v), spans, v)
    return tokens.tolist(), image_positions.tolist()


def names(variant: prompts.PromptVariant, v) -> list[str]:
    """A variant as marks, with images and texts drawn together."""
    ids = np.array(variant.tokens)
    kinds = np.where(v.is_image(ids), "image", np.where(v.is_text(ids), "text", [v.name(t) for t in variant.tokens]))
    kinds = kinds[~np.isin(ids, (*v.begin_image, *v.end_image))]
    return [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]


def test_text_to_image_is_the_document_up_to_its_image(parts):
    v, _, document, n = parts
    prompt = prompts.text_to_image(TEXT, LENGTH, v)
    conditional, unconditional = prompt.variants
    frame = len(v.begin_image)
    assert list(conditional.tokens) == document[: n + 2 + frame].tolist()
    assert len(prompt.plan) == LENGTH
    image_positions = positions_in_image(document, v)
    known = [*conditional.image_positions, *prompt.plan_image_positions]
    assert known == image_positions[: len(image_positions) - 1 - frame].tolist()
    assert list(unconditional.tokens) == masked(document, [(1, n + 1)], v)[0][: 3 + frame]


def test_a_caption_by_infill_is_the_document_with_its_text_masked(parts):
    v, codes, document, n = parts
    prompt = prompts.text_infill("<mask>", codes, 8, v)
    (variant,) = prompt.variants
    tokens, image_positions = masked(document, [(1, n + 1)], v)
    assert list(variant.tokens) == tokens[: len(variant.tokens)]
    assert list(variant.image_positions) == image_positions[: len(variant.tokens)]
    assert tokens[len(variant.tokens) :] == [*v.encode_text(TEXT), v.eoss]
    assert prompt.stop == v.eoss


def test_texts_are_filled_in_where_they_are_missing(parts):
    v, codes, *_ = parts
    first, middle, last = (v.encode_text(part) for part in ("a", " of", " five"))
    document = np.array([v.end, *first, 30, 31, *middle, 32, *last, v.break_, *v.encode_image(codes), v.end])
    start = 1 + len(first)
    spans = [(start, start + 2), (start + 2 + len(middle), start + 3 + len(middle))]
    tokens, _ = masked(document, spans, v)
    prompt = prompts.text_infill("a<mask> of<mask> five", codes, 8, v)
    (variant,) = prompt.variants
    assert list(variant.tokens) == tokens[: len(variant.tokens)]
    answer = tokens[len(variant.tokens) :]
    assert answer == [30, 31, v.eoss, v.mask(1), 32, v.eoss]
    assert prompts.infill_texts(answer[:-1], v) == [v.decode_text([30, 31]).strip(), v.decode_text([32]).strip()]


@pytest.mark.parametrize("text", ["nothing is missing", "<mask>" * 9])
def test_a_text_needs_blanks(parts, text):
    v, codes, *_ = parts
    with pytest.raises(UserError, match=rf"write 1 to {v.num_masks} where text is missing"):
        prompts.text_infill(text, codes, 8, v)


def test_infill_is_the_document_with_spans_of_its_image_masked(parts):
    v, codes, document, n = parts
    mask = np.zeros(LENGTH, bool)
    mask[[2, 3, 4, 9]] = True
    prompt = prompts.infill(TEXT, codes, mask, v)
    (variant,) = prompt.variants
    first = n + 2 + len(v.begin_image)
    tokens, image_positions = masked(document, [(first + 2, first + 5), (first + 9, first + 10)], v)
    assert list(variant.tokens) == tokens[: len(variant.tokens)]
    assert [*variant.image_positions, *prompt.plan_image_positions] == image_positions[:-1]
    answer = tokens[len(variant.tokens) : -1]
    assert len(prompt.plan) == len(answer)
    for plan, token in zip(prompt.plan, answer, strict=True):
        assert plan == token if plan >= 0 else v.is_image(np.array(token))
    np.testing.assert_array_equal(prompts.merge_infill(np.where(mask, 0, codes), mask, answer, v), codes)


def test_infill_needs_a_region(parts):
    v, codes, *_ = parts
    with pytest.raises(UserError, match="covers no code"):
        prompts.infill(TEXT, codes, np.zeros(LENGTH, bool), v)


def test_retrieved_documents_stand_in_front(parts):
    v, codes, document, _ = parts
    retrieved = [document[1:-1].tolist()] * 2
    front = ["</s>", *["text", "<break>", "image", "<break>"] * 2]
    drawn = prompts.text_to_image(TEXT, LENGTH, v, retrieved)
    assert [names(variant, v) for variant in drawn.variants] == [[*front, "text", "<break>"], front]
    mask = np.arange(LENGTH) < 2
    for prompt, tail in (
        (prompts.text_infill("<mask>", codes, 4, v, retrieved), ["<mask:0>", "<break>", "image", "</s>", "<mask:0>"]),
        (prompts.text_after_image(codes, 4, v, retrieved), ["image", "<break>"]),
        (
            prompts.infill(TEXT, codes, mask, v, retrieved),
            ["text", "<break>", "<mask:0>", "image", "</s>", "<mask:0>"],
        ),
        (prompts.continuation([TEXT], 4, LENGTH, 400, v, retrieved), ["text"]),
    ):
        (variant,) = prompt.variants
        assert names(variant, v) == [*front, *tail]
        # A retrieved image keeps its own places.
        at = variant.tokens.index(v.first_image_code)
        assert variant.image_positions[at : at + LENGTH] == tuple(range(2, LENGTH + 2))


def test_a_continuation_is_split_into_segments(parts):
    v, codes, *_ = parts
    prompt = prompts.continuation([TEXT, codes], 40, LENGTH, 400, v)
    assert names(prompt.variants[0], v) == ["</s>", "text", "<break>", "image"]
    words = v.encode_text("zero")
    answer = [v.break_, *words, v.break_, *v.encode_image(codes).tolist()]
    text, image = prompts.split_segments(answer, v)
    assert text == "zero"
    np.testing.assert_array_equal(image, codes)
