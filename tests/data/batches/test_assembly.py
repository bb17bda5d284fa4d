"""Rows, token by token: what is assembled many rows at a time is what a plain loop over lists gives."""

from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.counter_random import Stream, generator, uniform
from cm3leon_jax.data.batches.config import BatchConfig, ObjectiveConfig
from cm3leon_jax.data.batches.objective import SENTINELS_PER_SPAN, sample_spans, segments, span_counts
from cm3leon_jax.data.batches.row_fit import truncate_document
from cm3leon_jax.data.batches.row_plan import open_retrieval
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.data.corpus.neighbors import NONE
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.retrieval.config import RetrievalConfig
from tests.conftest import write_corpus, write_neighbors

SEED, BATCH_SIZE = 5, 19
LISTS = RetrievalConfig(enabled=True)


def irregular_document(vocabulary, rng: np.random.Generator) -> np.ndarray:
    """Nothing, or up to five segments: texts, images, empty ones, and images that touch a text."""
    ids: list[int] = []
    for number in range(rng.integers(0, 6)):
        ids += [vocabulary.break_] * (number > 0)
        ids += rng.integers(4, 9, rng.integers(0, 9)).tolist() if rng.random() < 0.6 else []
        ids += (vocabulary.first_image_code + rng.integers(0, 32, 16)).tolist() if rng.random() < 0.5 else []
    return np.array(ids, np.int32)


@pytest.fixture(scope="module")
def irregular(tmp_path_factory, vocabulary):
    rng = np.random.default_rng(11)
    documents = {
        task: {"train": [irregular_document(vocabulary, rng) for _ in range(size)]}
        for task, size in (("many", 90), ("few", 13))
    }
    corpus = PreparedCorpus.open(write_corpus(tmp_path_factory.mktemp("corpus"), vocabulary, documents), vocabulary)
    lists = {task: {"train": rng.integers(-1, 103, (len(splits["train"]), 4))} for task, splits in documents.items()}
    write_neighbors(corpus, LISTS, ["many", "few"], lists)
    return corpus, vocabulary, [splits["train"] for splits in documents.values()]


def plain_places(ids: list[int], vocabulary) -> list[int]:
    positions: list[int] = []
    for token in ids:
        is_code = vocabulary.first_image_code <= token < vocabulary.first_image_code + vocabulary.num_image_codes
        positions.append(max(2, positions[-1] + 1 if positions else 2) if is_code else 0)
    return positions


def plain_mask(columns: list[tuple[int, int]], objective, vocabulary, limit, room, *key) -> list[tuple[int, int]]:
    """(token, place) with its spans moved to the end."""
    tokens = np.array([token for token, _ in columns], np.int32)
    count = min(room, int(span_counts(objective, vocabulary.num_masks, *key)))
    is_whole = bool(uniform(*key, Stream.WHOLE_SEGMENTS) < objective.segment_mask_prob)
    spans = sample_spans(len(tokens), segments(tokens, vocabulary), count, is_whole, generator(*key, Stream.SPANS))
    kept, moved = [], []
    for index, column in enumerate(columns):
        inside = [number for number, (start, stop) in enumerate(spans) if start <= index < stop]
        if not inside:
            kept.append(column)
            continue
        start, stop = spans[inside[0]]
        mark = vocabulary.mask(inside[0])
        if index == start:
            kept.append((mark, columns[stop - 1][1]))
            moved.append((mark, max(0, column[1] - 1)))
        moved.append(column)
        if index == stop - 1:
            moved.append((vocabulary.eoss, 0))
    return [*kept[: max(0, limit - len(moved))], *moved][:limit]


def plain_row(source: BatchSource, row: int, irregular, batch: BatchConfig, objective) -> list[list[int]]:
    """Tokens, targets, weights, positions, document starts and places of one row."""
    _, vocabulary, tasks = irregular
    everything = [document for documents in tasks for document in documents]
    window, place = source.locate(row)
    plan = source.planner.plan(window)
    longest = batch.sequence_length - 1

    def framed(index: int) -> list[int]:
        ids: list[int] = []
        for neighbor in plan.neighbors[index].tolist():
            ids += [*everything[neighbor].tolist(), vocabulary.break_] if neighbor != NONE else []
        ids += tasks[plan.references.task[index]][plan.references.document[index]].tolist()
        if batch.packing == "best_fit":
            ids = truncate_document(np.array(ids, np.int32), longest, vocabulary).tolist()
        return [vocabulary.end, *ids, vocabulary.end]

    def columns(index: int) -> list[tuple[int, int]]:
        return list(zip(framed(index), plain_places(framed(index), vocabulary), strict=True))

    rest = (objective, vocabulary, batch.sequence_length + 1)
    if batch.packing == "concat_then_split":
        stretch = [column for index, start, stop in plan.rows[place] for column in columns(index)[start:stop]]
        sequences = [plain_mask(stretch, *rest, 99, SEED, Stream.MASKS, window, place)]
    else:
        sequences = []
        for index in plan.rows[place]:
            key = [int(part[index]) for part in (plan.references.task, plan.references.epoch, plan.references.document)]
            task, _, document = key
            too_long = len(tasks[task][document]) > longest
            room = 0 if too_long else (longest + 2 - len(framed(index))) // SENTINELS_PER_SPAN
            if len(framed(index)) > 2:
                sequences.append(plain_mask(columns(index), *rest, room, SEED, Stream.MASKS, *key))
    fields: list[list[int]] = [[], [], [], [], [], []]
    for sequence in sequences:
        first = len(fields[0])
        for position, (here, after) in enumerate(pairwise(sequence)):
            for field, value in zip(fields, (here[0], after[0], 1, position, first, here[1]), strict=True):
                field.append(value)
    for index in range(len(fields[0]), batch.sequence_length):
        for field, value in zip(fields, (vocabulary.pad, vocabulary.pad, 0, 0, index, 0), strict=True):
            field.append(value)
    return fields


@settings(max_examples=25, deadline=None)
@given(
    packing=st.sampled_from(["best_fit", "concat_then_split"]),
    length=st.integers(8, 90),
    num_retrieved=st.one_of(st.none(), st.integers(0, 4)),
    objective=st.builds(
        ObjectiveConfig,
        span_count=st.sampled_from(["poisson", "none"]),
        mean_spans=st.sampled_from([1.0, 4.0]),
        segment_mask_prob=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    share=st.floats(0, 1),
)
def test_a_batch_is_what_a_plain_loop_gives(irregular, packing, length, num_retrieved, objective, share):
    corpus, vocabulary, _ = irregular
    batch = BatchConfig(batch_size=BATCH_SIZE, sequence_length=length, packing=packing, seed=SEED)
    config = RetrievalConfig(enabled=True, num_retrieved=num_retrieved or 0)
    retrieval = None if num_retrieved is None else open_retrieval(corpus, config, "train")
    source = BatchSource(corpus, vocabulary, objective, batch, retrieval=retrieval)
    # With a share of 1, the batch that crosses into the second window.
    step = int(share * len(source.planner.plan(0).rows)) // BATCH_SIZE
    found = np.stack(jax.tree.leaves(source[step]), axis=1)
    for index, row in enumerate(range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)):
        np.testing.assert_array_equal(found[index], plain_row(source, row, irregular, batch, objective))
