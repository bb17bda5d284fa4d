"""The grammar of texts, images and marks."""

import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.generation.decode import (
    DecodeState,
    PromptBatch,
    candidate_ids,
    forced_tokens,
    image_tokens_left_after,
    legal_tokens,
)
from cm3leon_jax.generation.prompts import ANYTHING, IMAGE_CODE, TEXT_TOKEN
from tests.generation.constraints import constraints


def expected(**given) -> tuple[PromptBatch, DecodeState]:
    values = dict(
        plan=ANYTHING, tokens_left=40, last=10, image_tokens_left=0, stop=-1, spans_left=1, num_spans=1, image_length=16
    )
    return constraints(**(values | given))


def legal(vocabulary, **given) -> np.ndarray:
    return np.asarray(legal_tokens(np.arange(vocabulary.size), *expected(**given), vocabulary))[0]


def test_plans(vocabulary):
    v, ids = vocabulary, np.arange(vocabulary.size)
    np.testing.assert_array_equal(legal(v, plan=IMAGE_CODE), v.is_image(ids))
    np.testing.assert_array_equal(legal(v, plan=TEXT_TOKEN, stop=v.eoss), v.is_text(ids) | (ids == v.eoss))
    np.testing.assert_array_equal(legal(v, plan=TEXT_TOKEN, stop=v.end), v.is_text(ids) | (ids == v.end))


def test_anything_follows_the_order_of_a_document(vocabulary):
    v, ids = vocabulary, np.arange(vocabulary.size)
    text, code, marks = v.is_text(ids), v.is_image(ids), (ids == v.break_) | (ids == v.end)
    a_code = v.first_image_code + 3
    np.testing.assert_array_equal(legal(v, last=10), text | marks)
    np.testing.assert_array_equal(legal(v, last=v.break_), text | code)
    np.testing.assert_array_equal(legal(v, last=v.end), text | code)
    np.testing.assert_array_equal(legal(v, last=a_code, image_tokens_left=5), code)
    np.testing.assert_array_equal(legal(v, last=a_code, image_tokens_left=0), marks)


def test_an_image_begins_only_where_it_fits(vocabulary):
    v, ids = vocabulary, np.arange(vocabulary.size)
    assert legal(v, last=v.break_, tokens_left=16)[v.first_image_code]
    np.testing.assert_array_equal(legal(v, last=v.break_, tokens_left=15), v.is_text(ids))
    # The last token of all can be no break: nothing could follow it.
    assert not legal(v, last=10, tokens_left=1)[v.break_]


def test_an_image_stands_in_the_frame_of_its_vocabulary(framed_vocabulary):
    v, ids = framed_vocabulary, np.arange(framed_vocabulary.size)
    text, code, marks = v.is_text(ids), v.is_image(ids), (ids == v.break_) | (ids == v.end)
    (begin,), (end,), a_code = v.begin_image, v.end_image, v.first_image_code + 3
    np.testing.assert_array_equal(legal(v, last=10), text | marks)
    np.testing.assert_array_equal(legal(v, last=v.break_), text | (ids == begin))
    np.testing.assert_array_equal(legal(v, last=begin), code)
    np.testing.assert_array_equal(legal(v, last=a_code, image_tokens_left=5), code)
    np.testing.assert_array_equal(legal(v, last=a_code, image_tokens_left=0), ids == end)
    np.testing.assert_array_equal(legal(v, last=end), marks)
    assert legal(v, last=v.break_, tokens_left=18)[begin] and not legal(v, last=v.break_, tokens_left=17)[begin]


def test_codes_are_counted_down(vocabulary):
    v = vocabulary
    code, text = jnp.array([v.first_image_code]), jnp.array([10])
    assert image_tokens_left_after(code, *expected(last=v.break_), v)[0] == 15
    assert image_tokens_left_after(code, *expected(image_tokens_left=15), v)[0] == 14
    assert image_tokens_left_after(code, *expected(image_tokens_left=1), v)[0] == 0
    assert image_tokens_left_after(text, *expected(last=v.break_), v)[0] == 0
    assert image_tokens_left_after(code, *expected(plan=IMAGE_CODE), v)[0] == 0


def test_marks_that_must_stand_there(vocabulary):
    v = vocabulary
    text = dict(plan=TEXT_TOKEN, stop=v.eoss, num_spans=3)
    assert forced_tokens(*expected(**text, spans_left=3, last=10), v)[0] == -1
    assert forced_tokens(*expected(**text, spans_left=2, last=v.eoss), v)[0] == v.mask(1)
    assert forced_tokens(*expected(**text, spans_left=1, last=v.eoss), v)[0] == v.mask(2)
    assert forced_tokens(*expected(**text, spans_left=2, last=10), v)[0] == -1
    assert forced_tokens(*expected(plan=v.mask(4)), v)[0] == v.mask(4)
    assert forced_tokens(*expected(plan=IMAGE_CODE), v)[0] == -1


@pytest.mark.parametrize("kinds", [{IMAGE_CODE}, {TEXT_TOKEN}, {ANYTHING}, {IMAGE_CODE, TEXT_TOKEN}])
def test_candidates_hold_all_that_is_legal(vocabulary, kinds):
    v = vocabulary
    found = set(candidate_ids(frozenset(kinds), v).tolist())
    for plan in kinds:
        for last in (10, v.break_, v.eoss):
            assert set(np.flatnonzero(legal(v, plan=plan, last=last, stop=v.eoss)).tolist()) <= found
    if kinds == {IMAGE_CODE}:
        assert len(found) == v.num_image_codes
