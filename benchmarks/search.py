"""Compares the search for neighbors with FAISS' flat index, on the same cores, in one process.

    python benchmarks/search.py --size=200000 --dim=512 --queries=2048 --k=64

Rows of the datastore are the queries: random unit vectors, and 1,000 clusters (noise of 0.04 a coordinate). FAISS gets
its BLAS threshold set so that a matrix product is used, and of a few sizes of batches and blocks those that are fastest
here. The two take turns; the best round counts. Wall time suffers from whatever else runs, CPU seconds less so.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=2048)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recall", type=float, default=0.95, help="of the approximate search")
    arguments = parser.parse_args()
    # XLA takes as many threads as it sees cores, so this comes before JAX.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    import faiss
    import jax

    faiss.omp_set_num_threads(arguments.threads)
    print(f"{_processor()}, {arguments.threads} threads; jax {jax.__version__}, faiss {faiss.__version__}")
    print(f"datastore {arguments.size:,} x {arguments.dim}, {arguments.queries:,} queries, k {arguments.k}, float32")
    columns = f"{'queries/s':>10} {'queries/CPU s':>14} {'ratio, wall':>11} {'ratio, CPU':>10}"
    print(f"{'data':9} {'search':12} {columns}  recall")
    for data in ("random", "clustered"):
        _compare(data, arguments)


def _compare(data: str, arguments: argparse.Namespace) -> None:
    from cm3leon_jax.models.config import MeshConfig
    from cm3leon_jax.models.sharding import make_mesh
    from cm3leon_jax.retrieval.search import Search

    vectors = _vectors(data, arguments.size, arguments.dim)
    queries = vectors[:: max(1, arguments.size // arguments.queries)][: arguments.queries]
    mesh = make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=1))
    flat, best_of_faiss = _fastest_faiss(vectors, queries, arguments.k)
    exact = Search(vectors, mesh)
    approximate = Search(vectors, mesh, "approximate", arguments.recall)
    searches: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        "FAISS flat": flat,
        "exact": lambda: exact(queries, arguments.k),
        "approximate": lambda: approximate(queries, arguments.k),
    }
    found = {name: search()[1] for name, search in searches.items()}
    wall, cpu = ({name: float("inf") for name in searches} for _ in range(2))
    for _ in range(arguments.rounds):
        for name, search in searches.items():
            seconds = _time(search)
            wall[name], cpu[name] = min(wall[name], seconds[0]), min(cpu[name], seconds[1])
    for name in searches:
        recall = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found[name], found["FAISS flat"], strict=True)])
        print(
            f"{data:9} {name:12} {len(queries) / wall[name]:10.0f} {len(queries) / cpu[name]:14.0f} "
            f"{wall['FAISS flat'] / wall[name]:11.2f} {cpu['FAISS flat'] / cpu[name]:10.2f}  {recall:.5f}"
        )
    print(f"{data:9} FAISS: batches of {best_of_faiss[0]} queries, blocks of {best_of_faiss[1]} x {best_of_faiss[2]}")


def _vectors(data: str, size: int, dim: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((size, dim), dtype=np.float32)
    if data == "clustered":
        centers = rng.standard_normal((1000, dim), dtype=np.float32)
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
        vectors *= 0.04
        vectors += centers[rng.integers(len(centers), size=size)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _fastest_faiss(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[Callable[[], Any], tuple[int, int, int]]:
    """FAISS' exact search with the fastest of a few sizes: queries a call, and a block's queries and rows."""
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 20
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    def search(sizes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        batch, faiss.cvar.distance_compute_blas_query_bs, faiss.cvar.distance_compute_blas_database_bs = sizes
        parts = [index.search(queries[start : start + batch], k) for start in range(0, len(queries), batch)]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    candidates = [(batch, *block) for batch in (256, 1024, len(queries)) for block in ((4096, 4096), (1024, 16384))]
    seconds = {sizes: _time(lambda sizes=sizes: search(sizes))[1] for sizes in candidates}
    best = min(candidates, key=seconds.__getitem__)
    return lambda: search(best), best


def _time(call: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    fields = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    kind = f" family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    return f"{fields.get('model name', platform.machine())}{kind}"


if __name__ == "__main__":
    main()
