"""The index finds what comparing everything finds, in a file that is whole, absent or refused."""

import json
import sys

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.retrieval.index import Index, build

faiss = pytest.importorskip("faiss")


def clustered_vectors(num_rows: int, num_clusters: int = 40, dim: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((num_clusters, dim), dtype=np.float32)
    vectors = centers[rng.integers(num_clusters, size=num_rows)]
    vectors += 0.5 * rng.standard_normal((num_rows, dim), dtype=np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def best(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries @ vectors.astype(np.float32).T), axis=1, kind="stable")[:, :k]


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)]))


def test_a_small_memory_is_compared_as_a_whole(tmp_path):
    vectors = clustered_vectors(1000)
    record = build(vectors, tmp_path / "index.faiss")
    assert record == {"kind": "flat", "num_rows": 1000, "recall_at_10": 1.0}
    queries = vectors[:50].astype(np.float32)
    scores, index = Index.open(tmp_path / "index.faiss").search(queries, 10)
    assert scores.dtype == np.float32 and index.dtype == np.int64
    np.testing.assert_array_equal(index[:, 0], np.arange(50))
    assert recall(index, best(vectors, queries, 10)) > 0.995
    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", vectors[index].astype(np.float32), queries), atol=1e-5)


def test_a_large_memory_is_put_into_lists_that_reach_the_recall(tmp_path):
    vectors = clustered_vectors(6000)
    np.save(tmp_path / "memory.npy", vectors)
    mapped = np.load(tmp_path / "memory.npy", mmap_mode="r")
    record = build(mapped, tmp_path / "index.faiss", flat_up_to=1000)
    assert json.loads(json.dumps(record)) == record
    assert record["kind"] == "lists" and record["num_rows"] == 6000
    assert record["num_lists"] == 310
    assert record["recall_at_10"] >= 0.99
    assert 1 < record["num_probes"] < 310
    # Rows that were not among the queries of the measurement, with other noise.
    rng = np.random.default_rng(5)
    queries = vectors[rng.integers(6000, size=300)] + rng.normal(0, 0.5 / 32**0.5, (300, 32)).astype(np.float32)
    _, index = Index.open(tmp_path / "index.faiss").search(queries, 10)
    assert recall(index, best(vectors, queries, 10)) > 0.97


def test_the_number_of_probes_is_the_smallest_that_reaches_the_recall_of_the_queries(tmp_path):
    vectors = clustered_vectors(4000)
    queries = np.random.default_rng(1).standard_normal((100, 32)).astype(np.float32)
    record = build(vectors, tmp_path / "index.faiss", queries, flat_up_to=0)
    lists = faiss.read_index(str(tmp_path / "index.faiss"))
    assert lists.nprobe == record["num_probes"]
    expected = best(vectors, queries, 10)
    assert recall(lists.search(queries, 10)[1], expected) == pytest.approx(record["recall_at_10"], abs=0.005)
    lists.nprobe -= 1
    assert recall(lists.search(queries, 10)[1], expected) < 0.99


def test_rows_that_are_equal_do_not_spoil_the_recall(tmp_path):
    vectors = np.repeat(clustered_vectors(20), 100, axis=0)
    record = build(vectors, tmp_path / "index.faiss", flat_up_to=0)
    assert record["recall_at_10"] == 1.0
    assert record["num_probes"] < record["num_lists"]


@pytest.mark.parametrize("flat_up_to", [0, 1000])
def test_the_same_vectors_make_the_same_file(tmp_path, flat_up_to):
    vectors = clustered_vectors(900)
    for name in ("first", "second"):
        build(vectors, tmp_path / name, flat_up_to=flat_up_to)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("flat_up_to", [0, 1000])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_fewer_rows_than_asked_for_are_filled_up(tmp_path, num_rows, flat_up_to):
    vectors = -np.ones((num_rows, 2), np.float16)
    build(vectors, tmp_path / "index.faiss", flat_up_to=flat_up_to)
    opened = Index.open(tmp_path / "index.faiss")
    scores, index = opened.search(np.ones((2, 2), np.float32), 5)
    assert (index >= 0).sum() == np.isfinite(scores).sum() == (scores == -2).sum() == 2 * num_rows
    assert np.all(scores[index < 0] == -np.inf)
    with pytest.raises(ValueError, match="queries are 3 wide, the index 2"):
        opened.search(np.ones((1, 3), np.float32), 1)


def test_an_empty_memory_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match=r"the memory is empty: .*datastore_tasks"):
        build(np.zeros((0, 4), np.float16), tmp_path / "index.faiss")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "index.faiss"
    with pytest.raises(UserError, match=r"no index at .*cm3leon prepare"):
        Index.open(path)
    build(clustered_vectors(300), path)
    whole = path.read_bytes()
    other = faiss.serialize_index(faiss.IndexFlatL2(4)).tobytes()
    for damaged in (b"", b"not an index", whole[: len(whole) // 2], whole[:-1], bytes(100) + whole[100:], other):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"index.faiss is damaged: delete .* and run `cm3leon prepare` again$"):
            Index.open(path)


def test_without_faiss_the_package_to_install_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    for call in (lambda: build(clustered_vectors(10), tmp_path / "index"), lambda: Index.open(tmp_path / "index")):
        with pytest.raises(UserError, match=r"pip install 'cm3leon_jax\[retrieval\]'$"):
            call()
