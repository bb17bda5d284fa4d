"""Prompts are training documents cut where the answer begins."""

import numpy as np
import pytest

from cm3leon_jax.data.objective import move_spans, picture_places
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation import prompts

TEXT, LENGTH = "a handwritten seven", 16


@pytest.fixture
def parts(vocabulary):
    v = vocabulary
    codes = np.arange(LENGTH)
    document = np.array([v.end, *v.encode_text(TEXT), v.break_, *v.encode_image(codes), v.end])
    return v, codes, document, len(v.encode_text(TEXT))


def test_text_to_image_is_the_document_up_to_its_picture(parts):
    v, _, document, n = parts
    prompt = prompts.text_to_image(TEXT, LENGTH, v)
    assert list(prompt.tokens) == document[: n + 2].tolist()
    assert len(prompt.plan) == LENGTH
    places = picture_places(document, v)
    assert [*prompt.places, *prompt.plan_places] == places[:-1].tolist()
    masked, _ = move_spans(document, picture_places(document, v), [(1, n + 1)], v)
    assert list(prompt.unconditional) == masked[:3].tolist()


def test_a_caption_by_infill_is_the_document_with_its_text_masked(parts):
    v, codes, document, n = parts
    prompt = prompts.caption(codes, 8, v)
    masked, places = (part.tolist() for part in move_spans(document, picture_places(document, v), [(1, n + 1)], v))
    assert list(prompt.tokens) == masked[: len(prompt.tokens)]
    assert list(prompt.places) == places[: len(prompt.tokens)]
    assert masked[len(prompt.tokens) :] == [*v.encode_text(TEXT), v.eoss]
    assert prompt.stop == v.eoss


def test_infill_is_the_document_with_spans_of_its_picture_masked(parts):
    v, codes, document, n = parts
    mask = np.zeros(LENGTH, bool)
    mask[[2, 3, 4, 9]] = True
    prompt = prompts.infill(TEXT, codes, mask, v)
    first = n + 2
    spans = [(first + 2, first + 5), (first + 9, first + 10)]
    masked, places = (part.tolist() for part in move_spans(document, picture_places(document, v), spans, v))
    assert list(prompt.tokens) == masked[: len(prompt.tokens)]
    assert [*prompt.places, *prompt.plan_places] == places[:-1]
    answer = masked[len(prompt.tokens) : -1]
    assert len(prompt.plan) == len(answer)
    for plan, token in zip(prompt.plan, answer, strict=True):
        assert plan == token if plan >= 0 else v.is_image(np.array(token))
    np.testing.assert_array_equal(prompts.filled(np.where(mask, 0, codes), mask, answer, v), codes)


def test_infill_needs_a_region(parts):
    v, codes, *_ = parts
    with pytest.raises(UserError, match="covers no code"):
        prompts.infill(TEXT, codes, np.zeros(LENGTH, bool), v)
