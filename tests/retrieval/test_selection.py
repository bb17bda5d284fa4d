import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.retrieval.selection import NONE, Hits, select_neighbors

DIM = 6


def l2_normalize(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def found(datastore: np.ndarray, queries: np.ndarray, count: int) -> Hits:
    """Exact search, as NumPy does it."""
    scores = queries @ datastore.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return Hits(rows, np.take_along_axis(scores, rows, axis=1), datastore[rows])


def select(
    datastore, queries, own, document_rows=None, selected=None, count=3, max_similarity=0.9, min_similarity=0.0
) -> Hits:
    group_rows = np.zeros((len(queries), 2), np.int64) if document_rows is None else only(document_rows)
    selected = selected or Hits.none(len(queries), 0, DIM)
    return select_neighbors(
        found(datastore, queries, len(datastore)), group_rows, own, selected, count, max_similarity, min_similarity
    )


def only(rows: np.ndarray) -> np.ndarray:
    """The ranges of single rows."""
    return np.stack([rows, rows + 1], axis=1)


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
    datastore, queries, own = (l2_normalize(rng.normal(size=(n, DIM))) for n in (datastore_size, 5, 5))
    first_rows = rng.integers(0, datastore_size, 5)
    group_rows = np.stack([first_rows, first_rows + rng.integers(0, 4, 5)], axis=1)
    candidates = found(datastore, queries, datastore_size)
    result = select_neighbors(candidates, group_rows, own, Hits.none(5, 0, DIM), count, max_similarity, min_similarity)
    for document in range(5):
        expected: list[int] = []
        for row in candidates.rows[document]:
            score = float(queries[document] @ datastore[row])
            similarities = [
                float(own[document] @ datastore[row]),
                *(float(datastore[row] @ datastore[other]) for other in expected),
            ]
            if (
                not group_rows[document, 0] <= row < group_rows[document, 1]
                and min_similarity <= score <= max_similarity
                and max(similarities) <= max_similarity
            ):
                expected.append(int(row))
        expected = [*expected, *[NONE] * count][:count]
        assert result.rows[document].tolist() == expected


def test_a_copy_of_the_document_is_never_taken_though_its_query_scores_low():
    text, image, other = np.eye(3, DIM, dtype=np.float32)
    document = l2_normalize(text + image)
    datastore = np.stack([document, l2_normalize(text + other)])
    # By its text alone, the copy scores 0.71: below what the cut would leave out.
    result = select(datastore, text[None], document[None])
    assert result.rows[0].tolist() == [1, NONE, NONE]


def test_the_document_itself_is_never_taken():
    datastore = l2_normalize(np.random.default_rng(0).normal(size=(4, DIM)))
    result = select(
        datastore, datastore, datastore, document_rows=np.arange(4), count=4, max_similarity=1.1, min_similarity=-1.0
    )
    assert all(row not in rows for row, rows in enumerate(result.rows.tolist()))


def test_what_another_query_took_is_not_taken_again():
    datastore = l2_normalize(np.random.default_rng(1).normal(size=(8, DIM)))
    query, own = l2_normalize(np.ones((1, DIM))), np.zeros((1, DIM), np.float32)
    first = select(datastore, query, own, count=2, max_similarity=1.1, min_similarity=-1.0)
    second = select(datastore, query, own, selected=first, count=2, max_similarity=1.1, min_similarity=-1.0)
    both = first.concat(second)
    assert len(set(both.rows[0].tolist())) == 4


@pytest.mark.parametrize("count", [0, 2])
def test_below_the_floor_there_is_nothing(count):
    datastore = np.eye(2, DIM, dtype=np.float32)
    query = l2_normalize(np.array([[0.1, 0.1, 1, 0, 0, 0]]))
    result = select(datastore, query, query, count=count, min_similarity=0.5)
    assert result.rows.tolist() == [[NONE] * count]
