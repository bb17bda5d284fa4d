"""Batches are a pure function of the step, and hold every document whole."""

import jax
import numpy as np
import pytest

from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.data.batches.config import BatchConfig, ObjectiveConfig
from cm3leon_jax.data.batches.row_fit import truncate_document
from cm3leon_jax.data.batches.row_plan import open_retrieval
from cm3leon_jax.data.batches.source import BatchSource, iterate
from cm3leon_jax.data.corpus.neighbors import NONE
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.retrieval.config import RetrievalConfig
from tests.conftest import random_document, write_corpus, write_neighbors

LENGTH = 96


def source(corpus, vocabulary, packing="best_fit", objective=None, batch_size=8, split="train", **options):
    batch = BatchConfig(batch_size=batch_size, sequence_length=LENGTH, packing=packing, seed=3)
    return BatchSource(corpus, vocabulary, objective or ObjectiveConfig(), batch, split, **options)


def assert_equal(a: Batch, b: Batch) -> None:
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


def documents_of(batch: Batch) -> list[list[int]]:
    """The packed sequences, by the starts that attention sees, with the last target of each."""
    found = []
    for row, (tokens, targets, starts) in enumerate(
        zip(batch.tokens, batch.targets, batch.document_start, strict=True)
    ):
        has_target = batch.weights[row] > 0
        for start in np.unique(starts[has_target]):
            inside = (starts == start) & has_target
            found.append([int(tokens[start]), *targets[inside].tolist()])
    return found


@pytest.mark.parametrize("packing", ["best_fit", "concat_then_split"])
def test_the_batch_of_a_step_does_not_depend_on_where_one_starts(corpus, vocabulary, packing):
    straight = [source(corpus, vocabulary, packing)[step] for step in range(40)]
    one = source(corpus, vocabulary, packing)
    # 47 documents: these steps lie several epochs apart.
    for step in (39, 0, 25, 26):
        assert_equal(one[step], straight[step])
    fed = iterate(source(corpus, vocabulary, packing), 30, 40)
    for step in range(30, 40):
        assert_equal(next(fed), straight[step])


@pytest.mark.parametrize("packing", ["best_fit", "concat_then_split"])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [4, 5, 6, 7], [1, 2, 6], [7], range(8)])
def test_any_rows_are_those_of_the_one_global_batch(corpus, vocabulary, packing, rows):
    whole, part = source(corpus, vocabulary, packing)[11], source(corpus, vocabulary, packing, rows=rows)[11]
    assert_equal(jax.tree.map(lambda array: array[list(rows)], whole), part)


def test_whole_packing_holds_whole_documents_once_an_epoch(corpus, vocabulary):
    plain = source(corpus, vocabulary, objective=ObjectiveConfig(span_count="none"))
    expected = sorted(
        [vocabulary.end, *documents.document(i).tolist(), vocabulary.end]
        for documents in [corpus.task_split("second", "train")]
        for i in range(documents.num_documents)
    )
    seen: dict[tuple[int, ...], int] = {}
    for step in range(12):
        for document in documents_of(plain[step]):
            seen[tuple(document)] = seen.get(tuple(document), 0) + 1
    known = {
        (vocabulary.end, *documents.document(i).tolist(), vocabulary.end)
        for documents in corpus.splits("train").values()
        for i in range(documents.num_documents)
    }
    assert set(seen) <= known
    assert {tuple(document) for document in expected} <= set(seen)


def test_positions_restart_and_padding_sees_itself(corpus, vocabulary):
    batch = source(corpus, vocabulary)[0]
    columns = np.arange(LENGTH)
    padding = batch.weights == 0
    np.testing.assert_array_equal((columns - batch.document_start)[~padding], batch.positions[~padding])
    np.testing.assert_array_equal(batch.document_start[padding], np.broadcast_to(columns, padding.shape)[padding])
    assert padding.mean() < 0.2
    assert (batch.tokens[:, 0] == vocabulary.end).all()


def test_stream_packing_fills_every_row_and_keeps_the_order_of_tokens(corpus, vocabulary):
    batch = source(corpus, vocabulary, "concat_then_split", ObjectiveConfig(span_count="none"))[0]
    assert (batch.weights == 1).all()
    assert (batch.document_start == 0).all()
    np.testing.assert_array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])


def test_each_pass_over_a_document_masks_it_anew(corpus, vocabulary):
    masked = source(corpus, vocabulary)
    marks = [tuple(d) for step in range(30) for d in documents_of(masked[step])]
    endings = {d[-6:] for d in marks if d[-1] == vocabulary.eoss}
    assert len(endings) > len(marks) / 4


def test_rates_decide_how_often_a_task_comes(corpus, vocabulary):
    # Both tasks have rate 1 but 40 and 7 documents: half of what is drawn is of each.
    second = {tuple(corpus.task_split("second", "train").document(i).tolist()) for i in range(7)}
    plain = source(corpus, vocabulary, objective=ObjectiveConfig(span_count="none"))
    drawn = [tuple(d[1:-1]) for step in range(60) for d in documents_of(plain[step])]
    assert abs(np.mean([d in second for d in drawn]) - 0.5) < 0.08


def test_a_long_document_is_cut_between_segments_never_in_an_image(vocabulary):
    v = vocabulary
    text, image = [5] * 6, [v.first_image_code] * 10
    tokens = np.array([*text, v.break_, *image])
    assert truncate_document(tokens, 17, v).tolist() == tokens.tolist()
    assert truncate_document(tokens, 16, v).tolist() == text
    assert truncate_document(np.array(image), 9, v).tolist() == []
    assert truncate_document(np.array(text), 4, v).tolist() == text[:4]


@pytest.mark.parametrize("packing", ["best_fit", "concat_then_split"])
def test_a_hint_of_the_block_changes_no_batch(corpus, vocabulary, packing):
    plain = source(corpus, vocabulary, packing, batch_size=512)
    # A block makes some 5,500 rows: this step is in the second.
    hint = plain.block_at_step(12)
    assert hint[0] > 0
    hinted = source(corpus, vocabulary, packing, batch_size=512, start_block=hint)
    assert hinted.block_at_step(12) == hint
    for step in (12, 13, 0):
        assert_equal(hinted[step], plain[step])


RETRIEVAL = RetrievalConfig(enabled=True, num_retrieved=3)


@pytest.fixture(scope="module")
def with_neighbors(tmp_path_factory, vocabulary):
    """A corpus in which a document's neighbors are the two before and the two behind it; the first has none."""
    rng = np.random.default_rng(3)
    found = [random_document(vocabulary, rng) for _ in range(30)]
    path = write_corpus(tmp_path_factory.mktemp("corpus"), vocabulary, {"only": {"train": found}})
    corpus = PreparedCorpus.open(path, vocabulary)
    positions = (np.arange(30)[:, None] + np.array([-2, -1, 1, 2])) % 30
    positions[0] = NONE
    write_neighbors(corpus, RETRIEVAL, ["only"], {"only": {"train": positions}})
    return corpus, found


def retrieving(corpus, vocabulary, packing="best_fit", length=200, retrieval=RETRIEVAL, objective=None, **options):
    batch = BatchConfig(batch_size=4, sequence_length=length, packing=packing)
    objective = objective or ObjectiveConfig(span_count="none")
    opened = open_retrieval(corpus, retrieval, "train")
    return BatchSource(corpus, vocabulary, objective, batch, "train", retrieval=opened, **options)


def examples_of(batch, vocabulary):
    """Every document of a whole-packed batch, as its segments."""
    for row in range(len(batch.tokens)):
        used = batch.tokens[row] != vocabulary.pad
        for start in np.unique(batch.document_start[row][used]):
            inside = used & (batch.document_start[row] == start)
            ids = np.append(batch.tokens[row][inside], batch.targets[row][inside][-1])
            assert ids[0] == ids[-1] == vocabulary.end
            parts = np.split(ids[1:-1], np.flatnonzero(ids[1:-1] == vocabulary.break_))
            yield [part[part != vocabulary.break_].tolist() for part in parts]


def test_neighbors_stand_in_front_each_behind_a_break(with_neighbors, vocabulary):
    corpus, found = with_neighbors
    whole = {tuple(document[document != vocabulary.break_].tolist()): index for index, document in enumerate(found)}
    seen = set()
    source = retrieving(corpus, vocabulary)
    for step in range(40):
        for parts in examples_of(source[step], vocabulary):
            documents = [whole[(*text, *image)] for text, image in zip(parts[::2], parts[1::2], strict=True)]
            *neighbors, own = documents
            seen.add(own)
            assert len(neighbors) == (0 if own == 0 else 3)
            assert len(set(neighbors)) == len(neighbors)
            assert all((place - own) % 30 in (1, 2, 28, 29) for place in neighbors)
    assert seen == set(range(30))


def test_neighbors_that_do_not_fit_give_way_and_the_document_stays_whole(with_neighbors, vocabulary):
    corpus, _ = with_neighbors
    two_documents = 2 * 30 + 3
    for parts in examples_of(retrieving(corpus, vocabulary, length=two_documents)[0], vocabulary):
        assert 2 <= len(parts) <= 4 and len(parts[-1]) == 16


def test_every_token_but_padding_has_a_target_and_masks_reach_into_neighbors(with_neighbors, vocabulary):
    corpus, _ = with_neighbors
    batch = retrieving(corpus, vocabulary, objective=ObjectiveConfig(segment_mask_prob=0.0, mean_spans=4.0))[1]
    np.testing.assert_array_equal(batch.weights == 1, batch.tokens != vocabulary.pad)
    masks = batch.tokens >= vocabulary.first_mask
    # The first mark of a masked document, in its first half: far from the document's own, last, pair.
    assert (batch.positions[masks] < 40).any()


@pytest.mark.parametrize("packing", ["best_fit", "concat_then_split"])
def test_with_neighbors_two_processes_build_what_one_builds_and_any_step_comes_alone(
    with_neighbors, vocabulary, packing
):
    corpus, _ = with_neighbors
    whole = retrieving(corpus, vocabulary, packing)
    expected = [whole[step] for step in range(4)][3]
    halves = [retrieving(corpus, vocabulary, packing, rows=rows)[3] for rows in (range(2), range(2, 4))]
    assert_equal(expected, jax.tree.map(lambda *parts: np.concatenate(parts), *halves))


def test_a_stream_of_neighbors_is_full(with_neighbors, vocabulary):
    corpus, _ = with_neighbors
    batch = retrieving(corpus, vocabulary, "concat_then_split", length=64)[0]
    assert (batch.tokens != vocabulary.pad).all()
