"""The search finds what FAISS and a plain sort find, on any number of devices, with ties in the order of the index."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.errors import UserError
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.retrieval import search as search_module
from cm3leon_jax.retrieval.search import Search


def mesh_of(num_devices: int):
    tensor = 2 if num_devices > 1 else 1
    return make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=tensor), jax.devices()[:num_devices])


def l2_normalize(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_vectors(num_rows: int, dim: int) -> np.ndarray:
    return l2_normalize(np.random.default_rng(0).standard_normal((num_rows, dim), dtype=np.float32))


def clustered_vectors(num_rows: int, dim: int, num_clusters: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    centers = random_vectors(num_clusters, dim)
    noise = rng.standard_normal((num_rows, dim), dtype=np.float32)
    return l2_normalize(centers[rng.integers(num_clusters, size=num_rows)] + 0.04 * noise)


def sorted_scores(datastore: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The plain way: all products, a stable sort."""
    products = queries.astype(np.float32) @ datastore.astype(np.float32).T
    index = np.argsort(-products, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(products, index, axis=1)
    missing = ((0, 0), (0, k - index.shape[1]))
    return np.pad(scores, missing, constant_values=-np.inf), np.pad(index, missing, constant_values=-1)


def whole_numbers(seed: int, num_rows: int, num_queries: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Small whole numbers, of which products are exact and often equal."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(-2, 3, (n, dim)).astype(np.float32) for n in (num_rows, num_queries))


def assert_same_neighbors(found, expected) -> None:
    """Scores agree, and so do the neighbors, but where scores are as good as equal."""
    np.testing.assert_allclose(found[0], expected[0], atol=2e-6)
    for row, wanted, scores in zip(found[1], expected[1], expected[0], strict=True):
        # What one found and the other did not can only be as good as the last.
        clear = scores > scores[-1] + 4e-6
        assert set(wanted[clear]) <= set(row)
        assert len(set(row)) == len(row)
    differ = found[1] != expected[1]
    gaps = np.minimum(
        np.abs(np.diff(expected[0], prepend=np.inf, axis=1)), np.abs(np.diff(expected[0], append=-np.inf, axis=1))
    )
    at_the_end = expected[0] <= expected[0][:, -1:] + 4e-6
    assert np.all(~differ | (gaps < 4e-6) | at_the_end)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("make", [random_vectors, lambda n, d: clustered_vectors(n, d, 50)], ids=["random", "clusters"])
def test_neighbors_are_those_of_faiss(num_devices, make):
    faiss = pytest.importorskip("faiss")
    datastore = make(5003, 64)
    index = faiss.IndexFlatIP(64)
    index.add(datastore)
    queries = datastore[::41]
    found = Search(datastore, mesh_of(num_devices), block_size=1024, batch_size=64)(queries, 40)
    assert_same_neighbors(found, index.search(queries, 40))


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("clustered", [False, True])
def test_neighbors_are_those_of_faiss_in_a_large_datastore(num_devices, clustered):
    faiss = pytest.importorskip("faiss")
    datastore = clustered_vectors(200_000, 512, 1000) if clustered else random_vectors(200_000, 512)
    index = faiss.IndexFlatIP(512)
    index.add(datastore)
    queries = datastore[:300]
    found = Search(datastore, mesh_of(num_devices))(queries, 64)
    assert_same_neighbors(found, index.search(queries, 64))


@pytest.mark.slow
@given(
    num_rows=st.integers(1, 300),
    num_queries=st.integers(1, 12),
    k=st.integers(1, 80),
    num_devices=st.sampled_from([1, 2, 8]),
    block_size=st.sampled_from([1, 32, 64, 4096]),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_equal_scores_come_in_the_order_of_the_index_on_any_devices(
    num_rows, num_queries, k, num_devices, block_size, seed
):
    datastore, queries = whole_numbers(seed, num_rows, num_queries, 4)
    scores, index = Search(datastore, mesh_of(num_devices), block_size=block_size, batch_size=8)(queries, k)
    expected_scores, expected_index = sorted_scores(datastore, queries, k)
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(index, expected_index)


@pytest.mark.parametrize("better", [np.arange(3000, 3100), np.arange(2048, 4096, 100)], ids=["together", "apart"])
def test_what_beats_a_first_block_is_found_together_and_apart(better):
    datastore = np.ones((4096, 1), np.float32)
    datastore[better, 0] = 2 + np.arange(len(better))
    _, index = Search(datastore, mesh_of(1), block_size=2048)(np.ones((1, 1), np.float32), 64)
    expected = np.concatenate([better[::-1], np.arange(64)])[:64]
    np.testing.assert_array_equal(index[0], expected)


def test_padding_takes_no_place_in_the_choice_of_groups():
    one = np.ones((1, 1), np.float32)
    # A last group of three rows, the worst of all, filled up; the best three are in three groups.
    rows = np.arange(1003)
    datastore = -1.0 - 100.0 * (rows % 16) - rows // 16
    assert Search(datastore[:, None], mesh_of(1))(one, 3)[1].tolist() == [[0, 16, 32]]
    # Five groups in two blocks of three: the sixth is padding, next to the best row.
    datastore = np.zeros(80)
    datastore[[79, 48]] = 2, 1
    assert Search(datastore[:, None], mesh_of(1), block_size=48)(one, 2)[1].tolist() == [[79, 48]]


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("method", ["exact", "approximate"])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_fewer_rows_than_asked_for_are_filled_up(num_devices, method, num_rows):
    # Every product is negative, so that a row of padding would win.
    datastore = -1 - np.arange(num_rows, dtype=np.float32)[:, None]
    scores, index = Search(datastore, mesh_of(num_devices), method)(np.ones((3, 1), np.float32), 7)
    assert index.dtype == np.int64 and scores.dtype == np.float32
    np.testing.assert_array_equal(index, np.tile([*range(num_rows), *[-1] * (7 - num_rows)], (3, 1)))
    np.testing.assert_array_equal(scores, np.tile([*datastore[:, 0], *[-np.inf] * (7 - num_rows)], (3, 1)))


def test_batches_and_no_queries():
    datastore, queries = random_vectors(500, 8), random_vectors(37, 8)
    search = Search(datastore, mesh_of(8), batch_size=16)
    np.testing.assert_array_equal(search(queries, 5)[1], sorted_scores(datastore, queries, 5)[1])
    scores, index = search(queries[:0], 5)
    assert scores.shape == index.shape == (0, 5)


def test_a_mapped_float16_array_is_searched_as_it_is(tmp_path):
    datastore, queries = random_vectors(700, 16).astype(np.float16), random_vectors(9, 16)
    np.save(tmp_path / "datastore.npy", datastore)
    mapped = np.load(tmp_path / "datastore.npy", mmap_mode="r")
    assert_same_neighbors(Search(mapped, mesh_of(8))(queries, 10), sorted_scores(datastore, queries, 10))


def test_bfloat16_scores_are_as_near_as_promised():
    datastore, queries = random_vectors(700, 64), random_vectors(20, 64)
    scores, index = Search(datastore, mesh_of(8), dtype="bfloat16")(queries, 10)
    products = np.take_along_axis(queries @ datastore.T, index, axis=1)
    np.testing.assert_allclose(scores, products, atol=0.004)
    assert np.any(scores != products)
    assert np.all(products > sorted_scores(datastore, queries, 10)[0][:, -1:] - 0.008)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_approximate_search_finds_real_rows_and_enough_of_them(num_devices):
    datastore, queries = random_vectors(3001, 32), random_vectors(40, 32)
    search = Search(datastore, mesh_of(num_devices), "approximate", 0.9, block_size=512)
    scores, index = search(queries, 20)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ datastore.T, index, axis=1), atol=2e-6)
    assert np.all(np.diff(scores, axis=1) <= 0)
    expected = sorted_scores(datastore, queries, 20)[1]
    assert np.mean([len(set(a) & set(b)) / 20 for a, b in zip(index, expected, strict=True)]) >= 0.9


def test_the_program_holds_no_scores_of_all_rows():
    mesh = mesh_of(1)
    layout = search_module.make_layout(1 << 18, mesh, block_size=1024)
    queries = jax.ShapeDtypeStruct((64, 8), np.float32)
    rows = jax.ShapeDtypeStruct((layout.rows_per_device, 8), np.float32)
    compiled = search_module.nearest.lower(queries, rows, k=4, mesh=mesh, layout=layout).compile()
    all_scores = 64 * layout.num_rows * 4
    assert compiled.memory_analysis().temp_size_in_bytes < all_scores / 20


def test_a_datastore_that_cannot_be_searched_is_refused():
    with pytest.raises(UserError, match=r"the datastore is empty: .*datastore_tasks"):
        Search(np.zeros((0, 4), np.float32), mesh_of(1))
    broken = random_vectors(100, 4)
    broken[77, 2] = np.nan
    with pytest.raises(UserError, match="vector 77 of the datastore is not finite"):
        Search(broken, mesh_of(8))
    with pytest.raises(UserError, match=r"2\^31"):
        search_module.make_layout(2**31 - 1, mesh_of(8))
