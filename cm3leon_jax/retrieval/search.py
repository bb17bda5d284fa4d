"""Maximum inner product search over the vectors of a datastore, exact or approximate, on any number of devices.

    search = Search(vectors, mesh)          # numpy [M d], also memory-mapped; read shard by shard
    scores, index = search(queries, k=64)   # numpy [Q d] -> float32 [Q k], int64 [Q k]

The rows are sharded over every device of the mesh, and each device has all queries. It scans its rows block by block
and keeps the k best so far, so that only the scores of one block exist at a time. Then each device merges the results
of all devices for its part of the queries.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int32, Int64

from cm3leon_jax.errors import UserError

# Rows per group of `_merge_exact`: few for the caches of a CPU, elsewhere a row of lanes.
_GROUP = {"cpu": 16}
_GROUP_ELSEWHERE = 128
# Rows per block. The approximate search of a TPU never writes its scores, and each block ends with a sort.
_BLOCK = 16384
_BLOCK_APPROXIMATE_TPU = 262144
# Most blocks contain no more groups than this with a hit, once the first blocks are scanned.
_FEW_GROUPS = 16

# Scores and indices of the k best rows for each query, best first.
_Best = tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]]


@dataclasses.dataclass(frozen=True)
class SearchLayout:
    """How rows are laid out over devices and scanned: `num_blocks` blocks of `block_size` rows on each device."""

    # Rows that exist; those after them are padding, which is never found.
    num_rows: int
    num_blocks: int
    block_size: int
    group: int
    method: str
    recall: float
    dtype: str

    @property
    def rows_per_device(self) -> int:
        return self.num_blocks * self.block_size


def make_layout(
    num_rows: int,
    mesh: Mesh,
    *,
    method: str = "exact",
    recall: float = 0.95,
    dtype: str = "float32",
    block_size: int | None = None,
) -> SearchLayout:
    """Divides rows into even blocks of at most `block_size` rows, by default what suits the device."""
    if num_rows < 1:
        raise UserError(
            "the datastore is empty: no document may be a neighbor; widen config.retrieval.datastore_tasks, or set "
            "config.retrieval.both_modalities to False"
        )
    platform = mesh.devices.flat[0].platform
    group = _GROUP.get(platform, _GROUP_ELSEWHERE)
    if block_size is None:
        block_size = _BLOCK_APPROXIMATE_TPU if (platform, method) == ("tpu", "approximate") else _BLOCK
    num_groups = -(-num_rows // (group * mesh.size))
    num_blocks = -(-num_groups // max(1, block_size // group))
    block_size = -(-num_groups // num_blocks) * group
    layout = SearchLayout(num_rows, num_blocks, block_size, group, method, recall, dtype)
    if layout.rows_per_device * mesh.size >= 2**31:
        raise UserError(
            f"the datastore has {num_rows} rows, a search takes fewer than 2^31: name fewer in "
            "config.retrieval.datastore_tasks"
        )
    return layout


class Search:
    """Searches vectors that it keeps on the devices of a mesh."""

    def __init__(
        self,
        vectors: Float[np.ndarray, "M d"],
        mesh: Mesh,
        method: str = "exact",
        recall: float = 0.95,
        *,
        dtype: str = "float32",
        block_size: int | None = None,
        batch_size: int = 1024,
    ) -> None:
        """Puts `vectors` on the devices: float16 stays float16, all else becomes float32; "bfloat16" rounds both.

        Args:
          vectors: finite; read shard by shard, so that a memory-mapped array is never in host memory as a whole.
          method: "exact", or "approximate": each of the k best of a block is found with probability `recall`
            (arXiv 2206.14286); faster on a TPU, but exact and slower on a CPU.
          dtype: of the factors, summed in float32. "bfloat16" is about six times faster on a TPU; scores of unit
            vectors are off by up to 0.004, so neighbors with scores nearer than that may swap ranks.
          batch_size: queries per scan of the rows.
        """
        self.num_rows, self.dim = vectors.shape
        self._mesh, self._batch_size = mesh, batch_size
        self._layout = make_layout(
            self.num_rows, mesh, method=method, recall=recall, dtype=dtype, block_size=block_size
        )
        stored = jnp.bfloat16 if dtype == "bfloat16" else np.float16 if vectors.dtype == np.float16 else np.float32
        rows = self._layout.rows_per_device

        def load_shard(slices: tuple[slice, ...] | None) -> np.ndarray:
            start = (slices and slices[0].start) or 0
            found = _check_finite(np.asarray(vectors[start : start + rows]), start)
            padded = np.empty((rows, self.dim), stored)
            padded[: len(found)] = found
            # Repeats the last row: the maximum of a group with padding must be that of one of its rows.
            padded[len(found) :] = found[-1:] if len(found) else 0
            return padded

        sharding = NamedSharding(mesh, row_spec(mesh))
        self._vectors = jax.make_array_from_callback((rows * mesh.size, self.dim), sharding, load_shard)

    def __call__(
        self, queries: Float[np.ndarray, "Q d"], k: int
    ) -> tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]:
        """Finds scores and indices of the k rows with the largest inner products with each query, best first.

        Of equal scores the lower index comes first, for any devices and block size ("exact"). Rounding depends on the
        shapes of queries and blocks, so scores that differ in the last bit may swap ranks. With fewer than k rows, the
        rest has index -1 and score -inf.
        """
        if k < 1:
            raise ValueError(f"k is {k}: at least 1")
        # A power of two, to compile for few shapes only.
        size = min(self._batch_size, 1 << max(len(queries) - 1, 0).bit_length())
        size = -(-size // self._mesh.size) * self._mesh.size
        # Dispatched together: the devices never wait for the host to read a result.
        found = [self._search_batch(queries[start : start + size], size, k) for start in range(0, len(queries), size)]
        scores = np.concatenate([np.zeros((0, k), np.float32), *(np.asarray(scores) for scores, _ in found)])
        index = np.concatenate([np.zeros((0, k), np.int64), *(np.asarray(index) for _, index in found)])
        return scores[: len(queries)], index[: len(queries)]

    def _search_batch(self, queries: np.ndarray, size: int, k: int) -> tuple[Array, Array]:
        batch = np.zeros((size, self.dim), np.float32)
        batch[: len(queries)] = queries
        replicated = NamedSharding(self._mesh, PartitionSpec())
        on_devices = jax.make_array_from_callback(batch.shape, replicated, batch.__getitem__)
        return nearest(on_devices, self._vectors, k=k, mesh=self._mesh, layout=self._layout)


def _check_finite(rows: np.ndarray, first: int) -> np.ndarray:
    # Two numbers decide, so that the usual case makes no array as large as the rows.
    if len(rows) and not (np.isfinite(rows.min()) and np.isfinite(rows.max())):
        row = first + int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise UserError(
            f"vector {row} of the datastore is not finite: make the vectors again, or train the encoder again"
        )
    return rows


def row_spec(mesh: Mesh) -> PartitionSpec:
    """Shards the rows of a datastore over every device."""
    return PartitionSpec(mesh.axis_names)


@functools.partial(jax.jit, static_argnames=("k", "mesh", "layout"))
def nearest(
    queries: Float32[Array, "Q d"], rows: Float[Array, "R d"], *, k: int, mesh: Mesh, layout: SearchLayout
) -> _Best:
    """Searches rows that are sharded as `layout` says; the devices divide Q, and the result is replicated.

    A device holds its rows and the scores of one block: Q x `block_size` float32.
    """

    def search_shard(queries: Float32[Array, "Q d"], rows: Float[Array, "r d"]) -> _Best:
        first = jax.lax.axis_index(mesh.axis_names) * layout.rows_per_device
        scores, index = _scan_blocks(queries, rows, first, k, layout)
        if mesh.size > 1:
            # Shards are in the order of their rows, so equal scores stay in the order of their index.
            exchange = functools.partial(
                jax.lax.all_to_all, axis_name=mesh.axis_names, split_axis=0, concat_axis=1, tiled=True
            )
            scores, index = _top(exchange(scores), exchange(index), k)
            scores, index = (jax.lax.all_gather(part, mesh.axis_names, tiled=True) for part in (scores, index))
        return scores, jnp.where(scores == -jnp.inf, -1, index)

    specs = (PartitionSpec(), row_spec(mesh))
    return jax.shard_map(search_shard, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)(
        queries, rows
    )


def _scan_blocks(
    queries: Float32[Array, "Q d"], rows: Float[Array, "r d"], first: Int32[Array, ""], k: int, layout: SearchLayout
) -> _Best:
    """Finds the k best of a device's rows, the first of which has index `first`."""
    dtype = jnp.dtype(layout.dtype)
    merge = _merge_exact if layout.method == "exact" else _merge_approximate
    queries = queries.astype(dtype)

    def step(best: _Best, number: Int32[Array, ""]) -> tuple[_Best, None]:
        start = number * layout.block_size
        block = jax.lax.dynamic_slice_in_dim(rows, start, layout.block_size).astype(dtype)
        # Without HIGHEST an accelerator multiplies float32 in a narrower format.
        scores = jax.lax.dot_general(
            queries,
            block,
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )
        return merge(best, scores, first + start, layout), None

    nothing = (jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1, jnp.int32))
    return jax.lax.scan(step, nothing, jnp.arange(layout.num_blocks, dtype=jnp.int32))[0]


def _merge_exact(best: _Best, scores: Float32[Array, "Q b"], first: Int32[Array, ""], layout: SearchLayout) -> _Best:
    """Merges the k best so far with the scores of a block, whose first row has index `first`.

    A top-k of a whole block costs more than its matmul, so rows are considered in groups. The k best rows of a block
    are in the k groups with the largest maxima: for any other group there are k groups with a score that is larger,
    or equal at a lower index.
    """
    best_scores, k = best[0], best[0].shape[1]
    grouped = scores.reshape(len(scores), -1, layout.group)
    num_groups = grouped.shape[1]
    # To enter, a later row must be better than the worst of the best: of equal scores the earlier row stays.
    worst = best_scores[:, -1:]
    is_real = first + layout.group * jnp.arange(num_groups) < layout.num_rows
    maxima = grouped.max(axis=2)
    maxima = jnp.where((maxima > worst) & is_real, maxima, -jnp.inf)

    def merge_groups(count: int) -> _Best:
        # Sorted, so that equal scores stay in the order of their index.
        groups = jnp.sort(jax.lax.top_k(maxima, count)[1], axis=1)[:, :, None]
        found = jnp.take_along_axis(grouped, groups, axis=1, mode="promise_in_bounds").reshape(len(scores), -1)
        index = (first + groups * layout.group + jnp.arange(layout.group)).reshape(len(scores), -1)
        found = jnp.where((found > worst) & (index < layout.num_rows), found, -jnp.inf)
        return _better(best, found, index)

    most = min(k, num_groups)
    if most <= _FEW_GROUPS:
        return merge_groups(most)
    are_few = jnp.sum(maxima > worst, axis=1).max() <= _FEW_GROUPS
    return jax.lax.cond(are_few, lambda: merge_groups(_FEW_GROUPS), lambda: merge_groups(most))


def _merge_approximate(
    best: _Best, scores: Float32[Array, "Q b"], first: Int32[Array, ""], layout: SearchLayout
) -> _Best:
    """Does the same, finding each of the k best of the block with probability `recall`.

    The recall holds per block, not for all rows: all neighbors of a query may be in one block.
    """
    k = best[0].shape[1]
    scores = jnp.where(first + jnp.arange(scores.shape[1]) < layout.num_rows, scores, -jnp.inf)
    found, index = jax.lax.approx_max_k(scores, min(k, scores.shape[1]), recall_target=layout.recall)
    return _better(best, found, first + index)


def _better(best: _Best, scores: Float32[Array, "Q c"], index: Int32[Array, "Q c"]) -> _Best:
    """The k best of those so far and others after them."""
    return _top(jnp.concatenate([best[0], scores], 1), jnp.concatenate([best[1], index], 1), best[0].shape[1])


def _top(scores: Float32[Array, "Q c"], index: Int32[Array, "Q c"], k: int) -> _Best:
    scores, ranks = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(index, ranks, axis=1)
