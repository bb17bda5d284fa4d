"""The CM3 objective: what is moved, what never is, and that nothing is lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.counter_random import generator
from cm3leon_jax.data.batches.config import ObjectiveConfig
from cm3leon_jax.data.batches.objective import (
    SENTINELS_PER_SPAN,
    positions_in_image,
    sample_span_masks,
    sample_spans,
    segments,
    segments_between,
    separator_indices,
    span_counts,
)
from cm3leon_jax.data.batches.objective import apply_span_masks as move_tokens_and_places
from cm3leon_jax.vocabulary import Vocabulary


def apply_span_masks(tokens, spans, vocabulary, limit=None):
    return move_tokens_and_places(tokens, positions_in_image(tokens, vocabulary), spans, vocabulary, limit)[0]


def document(vocabulary: Vocabulary, lengths: list[int]) -> np.ndarray:
    """`</s> segment <break> segment ... </s>`, text and images in turn."""
    parts: list[list[int]] = [[vocabulary.end]]
    for index, length in enumerate(lengths):
        first = vocabulary.first_image_code if index % 2 else 4
        parts += [[first + i % 20 for i in range(length)], [vocabulary.break_]]
    return np.concatenate([*parts[:-1], [vocabulary.end]]).astype(np.int32)


def put_back(tokens: np.ndarray, vocabulary: Vocabulary) -> list[int]:
    """Reads a masked sequence as the model is meant to: every tail goes where its mark stands in the source."""
    ids = tokens.tolist()
    is_mark = [vocabulary.first_mask <= t < vocabulary.first_mask + vocabulary.num_masks for t in ids]
    tails: dict[int, list[int]] = {}
    while vocabulary.eoss in ids:
        last_mark = max(i for i, mark in enumerate(is_mark[: len(ids)]) if mark)
        tails[ids[last_mark]] = ids[last_mark + 1 : -1]
        assert ids[-1] == vocabulary.eoss
        ids = ids[:last_mark]
    restored: list[int] = []
    for token in ids:
        restored += tails.get(token, [token])
    return restored


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    count=st.integers(0, 6),
    whole=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_masking_loses_nothing_and_crosses_no_mark(vocabulary_for_properties, lengths, count, whole, seed):
    v = vocabulary_for_properties
    tokens = document(v, lengths)
    spans = sample_spans(len(tokens), segments(tokens, v), count, whole, generator(seed))
    assert len(spans) <= count
    for start, stop in spans:
        assert stop > start
        assert not np.isin(tokens[start:stop], [v.break_, v.end]).any()
    moved = apply_span_masks(tokens, spans, v)
    assert len(moved) == len(tokens) + SENTINELS_PER_SPAN * len(spans)
    assert put_back(moved, v) == tokens.tolist()


@pytest.fixture(scope="module")
def vocabulary_for_properties(vocabulary):
    return vocabulary


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), ends=st.tuples(st.integers(0, 40), st.integers(0, 40))
)
def test_the_segments_of_a_stretch_are_those_of_its_tokens(vocabulary_for_properties, lengths, ends):
    v = vocabulary_for_properties
    tokens = document(v, lengths)
    start, stop = (min(end, len(tokens)) for end in sorted(ends))
    assert segments_between(separator_indices(tokens, v), start, stop) == segments(tokens[start:stop], v)


def test_the_layout_is_the_papers(vocabulary):
    v = vocabulary
    tokens = np.array([v.end, 10, 11, v.break_, *range(v.first_image_code, v.first_image_code + 4), v.end])
    moved = apply_span_masks(tokens, [(1, 3), (5, 7)], v)
    image = v.first_image_code
    expected = [v.end, v.mask(0), v.break_, image, v.mask(1), image + 3, v.end]
    expected += [v.mask(0), 10, 11, v.eoss, v.mask(1), image + 1, image + 2, v.eoss]
    assert moved.tolist() == expected


def test_a_limit_cuts_the_source_and_keeps_every_tail(vocabulary):
    tokens = document(vocabulary, [5, 20])
    moved = apply_span_masks(tokens, [(2, 4), (10, 14)], vocabulary, limit=len(tokens))
    whole = apply_span_masks(tokens, [(2, 4), (10, 14)], vocabulary)
    tail = 2 + 4 + 2 * 2
    assert len(moved) == len(tokens)
    assert moved[-tail:].tolist() == whole[-tail:].tolist()
    assert moved[:-tail].tolist() == whole[: len(tokens) - tail].tolist()


def test_whole_segments_leave_one_as_the_condition(vocabulary):
    tokens = document(vocabulary, [4, 16])
    parts = segments(tokens, vocabulary)
    for seed in range(50):
        spans = sample_spans(len(tokens), parts, 3, True, generator(seed))
        assert len(spans) == 1
        assert spans[0] in parts


def test_a_masked_caption_is_as_frequent_as_the_default_promises(vocabulary):
    tokens = document(vocabulary, [8, 1024])
    parts = segments(tokens, vocabulary)
    draws = sample_span_masks(ObjectiveConfig(), 64, 7, np.arange(4000))
    masked = sum(
        sample_spans(len(tokens), parts, count, whole, generator(index)) == [parts[0]]
        for index, (count, whole) in enumerate(zip(draws.counts.tolist(), draws.is_whole.tolist(), strict=True))
    )
    assert 0.13 < masked / 4000 < 0.19


def test_span_counts_are_poisson_and_clamped():
    counts = span_counts(ObjectiveConfig(mean_spans=1.0, max_spans=3), 64, 1, np.arange(100_000))
    shares = np.bincount(counts) / len(counts)
    np.testing.assert_allclose(shares, [np.exp(-1), np.exp(-1), np.exp(-1) / 2, 1 - 2.5 * np.exp(-1)], atol=0.006)
    assert span_counts(ObjectiveConfig(span_count="none"), 64, 1, np.arange(5)).tolist() == [0] * 5
    assert span_counts(ObjectiveConfig(span_count="fixed", mean_spans=9.0), 4, 1, np.arange(2)).tolist() == [4, 4]


def test_a_code_keeps_its_place_wherever_it_moves(vocabulary):
    v = vocabulary
    tokens = document(v, [3, 6])
    positions = positions_in_image(tokens, v)
    assert positions.tolist() == [0] * 5 + [2, 3, 4, 5, 6, 7] + [0]
    # The codes at places 2 and 3 of the image, and the caption.
    moved, moved_positions = move_tokens_and_places(tokens, positions, [(1, 4), (7, 9)], v)
    by_code = {int(token): int(place) for token, place in zip(tokens, positions, strict=True)}
    for token, place in zip(moved, moved_positions, strict=True):
        if v.is_image(np.array([token]))[0]:
            assert place == by_code[int(token)]
    in_source, in_tail = np.flatnonzero(moved == v.mask(1))
    # Behind the mark in the image comes place 4, behind the one in the tail place 2; both are stored one higher.
    assert (moved_positions[in_source], moved_positions[in_tail]) == (5, 3)
    assert not moved_positions[moved == v.mask(0)].any()
    assert not moved_positions[moved == v.eoss].any()
