import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.retrieval.choice import NONE, Candidates, Chosen, choose

DIM = 6


def l2_normalize(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def found(memory: np.ndarray, queries: np.ndarray, count: int) -> Candidates:
    """Exact search, as NumPy does it."""
    scores = queries @ memory.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return Candidates(rows, np.take_along_axis(scores, rows, axis=1), memory[rows])


def chosen(memory, queries, own, own_rows=None, taken=None, count=3, max_similarity=0.9, min_similarity=0.0) -> Chosen:
    own_rows = np.full(len(queries), NONE) if own_rows is None else own_rows
    taken = taken or Chosen.none(len(queries), DIM)
    return choose(found(memory, queries, len(memory)), own_rows, own, taken, count, max_similarity, min_similarity)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    datastore_size=st.integers(1, 20),
    count=st.integers(1, 4),
    max_similarity=st.floats(0.3, 0.95),
    min_similarity=st.floats(-0.2, 0.4),
)
def test_every_choice_keeps_the_rules_and_leaves_out_nothing_better(
    seed, datastore_size, count, max_similarity, min_similarity
):
    rng = np.random.default_rng(seed)
    memory, queries, own = (l2_normalize(rng.normal(size=(n, DIM))) for n in (datastore_size, 5, 5))
    own_rows = rng.integers(-1, datastore_size, 5)
    candidates = found(memory, queries, datastore_size)
    result = choose(candidates, own_rows, own, Chosen.none(5, DIM), count, max_similarity, min_similarity)
    for document in range(5):
        expected: list[int] = []
        for row in candidates.rows[document]:
            score = float(queries[document] @ memory[row])
            alike = [float(own[document] @ memory[row]), *(float(memory[row] @ memory[other]) for other in expected)]
            if row != own_rows[document] and min_similarity <= score <= max_similarity and max(alike) <= max_similarity:
                expected.append(int(row))
        expected = [*expected, *[NONE] * count][:count]
        assert result.rows[document].tolist() == expected


def test_a_copy_of_the_document_is_never_taken_though_its_query_scores_low():
    text, image, other = np.eye(3, DIM, dtype=np.float32)
    document = l2_normalize(text + image)
    memory = np.stack([document, l2_normalize(text + other)])
    # By its text alone, the copy scores 0.71: below what the cut would leave out.
    result = chosen(memory, text[None], document[None])
    assert result.rows[0].tolist() == [1, NONE, NONE]


def test_the_document_itself_is_never_taken():
    memory = l2_normalize(np.random.default_rng(0).normal(size=(4, DIM)))
    result = chosen(memory, memory, memory, own_rows=np.arange(4), count=4, max_similarity=1.1, min_similarity=-1.0)
    assert all(row not in rows for row, rows in enumerate(result.rows.tolist()))


def test_what_another_query_took_is_not_taken_again():
    memory = l2_normalize(np.random.default_rng(1).normal(size=(8, DIM)))
    query, own = l2_normalize(np.ones((1, DIM))), np.zeros((1, DIM), np.float32)
    first = chosen(memory, query, own, count=2, max_similarity=1.1, min_similarity=-1.0)
    second = chosen(memory, query, own, taken=first, count=2, max_similarity=1.1, min_similarity=-1.0)
    both = first.and_then(second)
    assert len(set(both.rows[0].tolist())) == 4


@pytest.mark.parametrize("count", [0, 2])
def test_below_the_floor_there_is_nothing(count):
    memory = np.eye(2, DIM, dtype=np.float32)
    query = l2_normalize(np.array([[0.1, 0.1, 1, 0, 0, 0]]))
    result = chosen(memory, query, query, count=count, min_similarity=0.5)
    assert result.rows.tolist() == [[NONE] * count]
