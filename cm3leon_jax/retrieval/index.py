"""An index of vectors on disk, for one query at a time on a CPU: a FAISS file (arXiv 2401.08281).

Vectors are kept as float16, so the products of float16 vectors are exact. Up to 200,000 of them are all compared; more
are put into lists, of which the nearest few are searched, as many as a measured recall asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64
from tqdm import tqdm

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write
from cm3leon_jax.retrieval.search import check_datastore_not_empty

_FLAT_UP_TO = 200_000
_LOWEST_RECALL = 0.99
_RECALL_AT = 10
_NUM_QUERIES = 256
# What a query is away from the vector that it is made of: a document's other text or image, not the document itself.
_QUERY_NOISE = 0.5
# Rows read at a time.
_BLOCK = 65536
_MAX_LISTS = 65536
_SAMPLE_OF_A_LIST = 64
# Scores nearer than this are equal: float16 vectors score the same to here however they are summed.
_TOLERANCE = 1e-5


def build(
    vectors: Float[np.ndarray, "M d"],
    path: str | Path,
    queries: Float[np.ndarray, "Q d"] | None = None,
    *,
    flat_up_to: int = _FLAT_UP_TO,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes the index of `vectors`, which may be memory-mapped, and says what it is, for a manifest.

    Lists are the clusters of a sample, about 4 sqrt(M) of them. `num_probes`, how many are searched, is the smallest
    number whose recall is 0.99: of the ten best of each query, the share found. Queries default to 256 rows with noise
    of half their length. The whole index lies in memory: 2 d bytes a row.

    Returns:
      `kind` "flat", or "lists" with `num_lists` and `num_probes`; `num_rows`; and `recall_at_10`.

    Raises:
      UserError: if FAISS is not installed, or there are no vectors.
    """
    faiss = _import_faiss()
    num_rows, dim = vectors.shape
    check_datastore_not_empty(num_rows)
    float16, product = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    rng = np.random.default_rng(seed)
    if num_rows <= flat_up_to:
        index = faiss.IndexScalarQuantizer(dim, float16, product)
        _add(index, vectors)
        record: dict[str, Any] = {"kind": "flat", "num_rows": num_rows, "recall_at_10": 1.0}
    else:
        num_lists = min(round(4 * math.sqrt(num_rows)), num_rows, _MAX_LISTS)
        # Without residuals, which would be rounded anew.
        index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dim), dim, num_lists, float16, product, False)
        index.cp.seed = seed
        index.cp.max_points_per_centroid = _SAMPLE_OF_A_LIST
        index.train(_rows(vectors, _choose(rng, num_rows, _SAMPLE_OF_A_LIST * num_lists)))
        _add(index, vectors)
        if queries is None:
            queries = _perturbed(_rows(vectors, _choose(rng, num_rows, _NUM_QUERIES)), rng)
        recall = _set_probes(index, vectors, queries.astype(np.float32))
        record = {"kind": "lists", "num_rows": num_rows, "num_lists": num_lists, "num_probes": index.nprobe}
        record["recall_at_10"] = recall
    with atomic_write(path) as temporary:
        faiss.write_index(index, str(temporary))
    return record


class Index:
    """An index that `build` wrote, ready for queries."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.num_rows, self.dim = int(index.ntotal), int(index.d)

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Reads the file into memory.

        Raises:
          UserError: if FAISS is not installed, or the file is missing, or damaged.
        """
        faiss = _import_faiss()
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no index at {path}: run `cm3leon prepare` with config.retrieval.enabled")
        damaged = f"the index {path} is damaged: delete {path.parent} and run `cm3leon prepare` again"
        try:
            index = faiss.read_index(str(path))
        except (RuntimeError, MemoryError):
            raise UserError(damaged) from None
        if not isinstance(index, faiss.IndexScalarQuantizer | faiss.IndexIVFScalarQuantizer) or index.ntotal < 1:
            raise UserError(damaged)
        return cls(index)

    def search(
        self, queries: Float32[np.ndarray, "Q d"], k: int
    ) -> tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]:
        """The k rows with the largest inner products, best first; index -1 and score -inf where fewer are found.

        Raises:
          ValueError: if the queries are not as wide as the vectors.
        """
        if queries.shape[1] != self.dim:
            raise ValueError(f"queries are {queries.shape[1]} wide, the index {self.dim}")
        scores, index = self._index.search(np.ascontiguousarray(queries), k)
        return np.where(index < 0, np.float32(-np.inf), scores), index


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"an index of neighbors needs FAISS ({error}): pip install 'cm3leon_jax[retrieval]'") from None
    return faiss


def _choose(rng: np.random.Generator, num_rows: int, count: int) -> Int64[np.ndarray, "n"]:
    """Different rows, in the order they lie on disk."""
    return np.sort(rng.choice(num_rows, min(num_rows, count), replace=False, shuffle=False))


def _rows(vectors: np.ndarray, rows: np.ndarray) -> Float32[np.ndarray, "n d"]:
    return np.ascontiguousarray(vectors[rows], np.float32)


def _blocks(vectors: np.ndarray, what: str) -> Iterator[Float32[np.ndarray, "n d"]]:
    starts = range(0, len(vectors), _BLOCK)
    for start in tqdm(starts, desc=what, l2_normalize=" blocks", disable=True if len(starts) < 2 else None):
        yield np.ascontiguousarray(vectors[start : start + _BLOCK], np.float32)


def _add(index: Any, vectors: np.ndarray) -> None:
    if not index.is_trained:
        index.train(np.ascontiguousarray(vectors[:1], np.float32))
    for block in _blocks(vectors, "index"):
        index.add(block)


def _perturbed(vectors: np.ndarray, rng: np.random.Generator) -> Float32[np.ndarray, "n d"]:
    noise = rng.standard_normal(vectors.shape, dtype=np.float32)
    noise *= np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return vectors + _QUERY_NOISE * noise


def _set_probes(index: Any, vectors: np.ndarray, queries: np.ndarray) -> float:
    """Sets the smallest number of lists to search that reaches the recall, and returns the recall."""
    lowest = _tenth_scores(vectors, queries)[:, None] - _TOLERANCE

    def recall(num_probes: int) -> float:
        index.nprobe = num_probes
        scores, found = index.search(queries, _RECALL_AT)
        return float(np.mean((found >= 0) & (scores >= lowest)))

    # More lists never find worse rows, so the number can be enclosed; from below, since many lists cost much to search.
    too_few, enough = 0, 1
    while enough < index.nlist and recall(enough) < _LOWEST_RECALL:
        too_few, enough = enough, min(2 * enough, index.nlist)
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if recall(middle) < _LOWEST_RECALL:
            too_few = middle
        else:
            enough = middle
    return recall(enough)


def _tenth_scores(vectors: np.ndarray, queries: np.ndarray) -> Float32[np.ndarray, "Q"]:
    """The score of each query's tenth best row, by comparing them all."""
    best = np.full((len(queries), _RECALL_AT), -np.inf, np.float32)
    for block in _blocks(vectors, "recall"):
        both = np.concatenate([best, queries @ block.T], axis=1)
        best = -np.partition(-both, _RECALL_AT - 1, axis=1)[:, :_RECALL_AT]
    return best.min(axis=1)
