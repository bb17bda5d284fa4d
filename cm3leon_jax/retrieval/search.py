"""Search for the vectors of a memory with the largest inner products, exact or approximate, on any number of devices.

    search = Search(vectors, mesh)          # numpy [M d], also memory-mapped; goes to the devices shard by shard
    scores, index = search(queries, k=64)   # numpy [Q d] -> float32 [Q k], int64 [Q k]

The rows of the memory are shared out over every device of the mesh, and each device sees every query. A device goes
through its rows block by block and holds the k best so far, so no score outlives its block; then each device merges the
findings of all for its share of the queries.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int32, Int64

from cm3leon_jax.errors import UserError

# A CPU's caches like short groups; on an accelerator a group is a row of lanes.
_GROUP = {"cpu": 16}
_GROUP_ELSEWHERE = 128
# Rows of a block. What the approximate search of a TPU reduces is never written, and each block ends with a sort.
_BLOCK = 16384
_BLOCK_APPROXIMATE_TPU = 262144
# Groups taken from a block in which no query finds more than these: most blocks, once good neighbors are held.
_FEW_GROUPS = 16


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """How a memory lies on its devices and is gone through."""

    # Rows that exist; behind them is padding, which is never found.
    num_rows: int
    # Each device holds this many blocks of this many rows, whole groups.
    num_blocks: int
    block_size: int
    group: int
    # "exact" or "approximate": see Search.
    method: str
    recall: float
    # Numbers that are multiplied: "float32", each product exact to float32 on any device, or "bfloat16".
    dtype: str

    @property
    def rows_per_device(self) -> int:
        return self.num_blocks * self.block_size


def make_plan(
    num_rows: int,
    mesh: Mesh,
    *,
    method: str = "exact",
    recall: float = 0.95,
    dtype: str = "float32",
    block_size: int | None = None,
) -> SearchPlan:
    """Shares out `num_rows` rows over a mesh, in even blocks of at most `block_size` rows (but one group at least).

    Without a `block_size` it is what suits the device.

    Raises:
      UserError: if there are no rows, or more than int32 can count.
    """
    check_datastore_not_empty(num_rows)
    platform = mesh.devices.flat[0].platform
    group = _GROUP.get(platform, _GROUP_ELSEWHERE)
    if block_size is None:
        block_size = _BLOCK_APPROXIMATE_TPU if (platform, method) == ("tpu", "approximate") else _BLOCK
    groups = -(-num_rows // (group * mesh.size))
    num_blocks = -(-groups // max(1, block_size // group))
    block_size = -(-groups // num_blocks) * group
    plan = SearchPlan(num_rows, num_blocks, block_size, group, method, recall, dtype)
    if plan.rows_per_device * mesh.size >= 2**31:
        raise UserError(
            f"the memory has {num_rows} rows, a search takes fewer than 2^31: name fewer in "
            "config.retrieval.datastore_tasks"
        )
    return plan


class Search:
    """Vectors that can be found, on the devices of a mesh."""

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
          vectors: read shard by shard, so a memory-mapped array never lies in this process' memory as a whole.
          method: "exact", or "approximate": of the k best of a block each is found with probability `recall`
            (arXiv 2206.14286); faster on a TPU, not on a CPU, where it is exact and slower.
          recall: of "approximate", between 0 and 1.
          dtype: "float32", or "bfloat16" products, summed in float32: about six times faster on a TPU, and scores of
            unit vectors are off by up to 0.004, so that neighbors nearer to each other than that may change places.
          block_size: rows whose scores a device holds at a time, for a batch; by default what suits the device.
          batch_size: queries that go through the memory together.

        Raises:
          UserError: if there are no vectors, or one is not finite.
        """
        self.num_rows, self.dim = vectors.shape
        self._mesh, self._batch_size = mesh, batch_size
        self._plan = make_plan(self.num_rows, mesh, method=method, recall=recall, dtype=dtype, block_size=block_size)
        stored = jnp.bfloat16 if dtype == "bfloat16" else np.float16 if vectors.dtype == np.float16 else np.float32
        rows = self._plan.rows_per_device

        def shard(slices: tuple[slice, ...] | None) -> np.ndarray:
            start = (slices and slices[0].start) or 0
            found = _refuse_non_finite(np.asarray(vectors[start : start + rows]), start)
            padded = np.empty((rows, self.dim), stored)
            padded[: len(found)] = found
            # A group that is padding in part must not get a maximum that none of its rows has.
            padded[len(found) :] = found[-1:] if len(found) else 0
            return padded

        self._vectors = jax.make_array_from_callback(
            (rows * mesh.size, self.dim), NamedSharding(mesh, memory_spec(mesh)), shard
        )

    def __call__(
        self, queries: Float[np.ndarray, "Q d"], k: int
    ) -> tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]:
        """The k rows with the largest inner products with each query, best first, and these products.

        Of equal scores the lower index comes first, whatever the devices and the block size ("exact"). Sums may be
        rounded otherwise by another number of queries or rows at a time, so scores that differ in their last bit alone
        may change places. Where the memory has fewer than k rows, index -1 and score -inf fill up.
        """
        if k < 1:
            raise ValueError(f"k is {k}: at least 1")
        scores = np.full((len(queries), k), -np.inf, np.float32)
        index = np.full((len(queries), k), -1, np.int64)
        start = 0
        for found in self._batches(queries, k):
            stop = min(start + len(found[0]), len(queries))
            scores[start:stop], index[start:stop] = (np.asarray(part)[: stop - start] for part in found)
            start = stop
        return scores, index

    def _batches(self, queries: np.ndarray, k: int) -> Iterator[tuple[Array, Array]]:
        """Findings of one batch after the other, padded; the next batch runs while one is read."""
        # Few queries make a small batch: the next power of two, so that a few sizes are ever compiled.
        size = min(self._batch_size, 1 << max(len(queries) - 1, 0).bit_length())
        size = -(-size // self._mesh.size) * self._mesh.size
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        ahead = None
        for start in range(0, len(queries), size):
            batch = np.zeros((size, self.dim), np.float32)
            part = queries[start : start + size]
            batch[: len(part)] = part
            on_devices = jax.make_array_from_callback(batch.shape, everywhere, batch.__getitem__)
            running = nearest(on_devices, self._vectors, k=k, mesh=self._mesh, plan=self._plan)
            if ahead is not None:
                yield ahead
            ahead = running
        if ahead is not None:
            yield ahead


def check_datastore_not_empty(num_rows: int) -> None:
    """A memory has at least one row."""
    if num_rows < 1:
        raise UserError(
            "the memory is empty: no document may be a neighbor; widen config.retrieval.datastore_tasks, or set "
            "config.retrieval.both_modalities to False"
        )


def _refuse_non_finite(rows: np.ndarray, first: int) -> np.ndarray:
    # Two numbers decide, so that the usual case makes no array as large as the rows.
    if len(rows) and not (np.isfinite(rows.min()) and np.isfinite(rows.max())):
        row = first + int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise UserError(f"vector {row} of the memory is not finite: make the vectors again, or train the encoder anew")
    return rows


def memory_spec(mesh: Mesh) -> PartitionSpec:
    """The rows of a memory, over every device."""
    return PartitionSpec(mesh.axis_names)


@functools.partial(jax.jit, static_argnames=("k", "mesh", "plan"))
def nearest(
    queries: Float32[Array, "Q d"], memory: Float[Array, "R d"], *, k: int, mesh: Mesh, plan: SearchPlan
) -> tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]]:
    """The search as one program; Q divides by the devices, R is what the plan says, and the result is on every device.

    Per device it holds its rows, and of a batch the scores of one block: Q x `block_size` float32.
    """

    def on_a_device(
        queries: Float32[Array, "Q d"], rows: Float[Array, "r d"]
    ) -> tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]]:
        first = jax.lax.axis_index(mesh.axis_names) * plan.rows_per_device
        scores, index = _scan_blocks(queries, rows, first, k, plan)
        if mesh.size > 1:
            # Shards lie in the order of their rows, so equal scores of several stay in the order of their index.
            scores, index = (
                jax.lax.all_to_all(part, mesh.axis_names, split_axis=0, concat_axis=1, tiled=True)
                for part in (scores, index)
            )
            scores, index = _best(scores, index, k)
            scores, index = (jax.lax.all_gather(part, mesh.axis_names, tiled=True) for part in (scores, index))
        return scores, jnp.where(scores == -jnp.inf, -1, index)

    return jax.shard_map(
        on_a_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), memory_spec(mesh)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(queries, memory)


def _scan_blocks(
    queries: Float32[Array, "Q d"], rows: Float[Array, "r d"], first: Int32[Array, ""], k: int, plan: SearchPlan
) -> tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]]:
    """The k best of the rows of a device, of which the first has index `first`."""
    dtype = jnp.dtype(plan.dtype)
    merge = _merge_exact if plan.method == "exact" else _merge_approximate
    queries = queries.astype(dtype)

    def step(
        held: tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]], number: Int32[Array, ""]
    ) -> tuple[tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]], None]:
        start = number * plan.block_size
        block = jax.lax.dynamic_slice_in_dim(rows, start, plan.block_size).astype(dtype)
        # Without HIGHEST an accelerator multiplies float32 in a narrower format.
        products = jax.lax.dot_general(
            queries,
            block,
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )
        return merge(*held, products, first + start, plan), None

    nothing = (jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1, jnp.int32))
    return jax.lax.scan(step, nothing, jnp.arange(plan.num_blocks, dtype=jnp.int32))[0]


def _merge_exact(
    held_scores: Float32[Array, "Q k"],
    held_index: Int32[Array, "Q k"],
    scores: Float32[Array, "Q b"],
    first: Int32[Array, ""],
    plan: SearchPlan,
) -> tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]]:
    """The k best of those held and of a block, whose scores come with the index of its first row.

    A top-k over a whole block costs more than its products. But the k best of a block lie in the k groups with the
    largest maxima: any other group has k groups before it, each with a score that is larger, or equal at a lower index.
    """
    k = held_scores.shape[1]
    grouped = scores.reshape(len(scores), -1, plan.group)
    worst = held_scores[:, -1:]
    # Later rows lose against equal scores, so a group must beat what is held.
    exists = first + plan.group * jnp.arange(grouped.shape[1]) < plan.num_rows
    maxima = grouped.max(axis=2)
    maxima = jnp.where((maxima > worst) & exists, maxima, -jnp.inf)

    def take(num_groups: int) -> tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]]:
        # In the order of their index, because of equal scores.
        chosen = jnp.sort(jax.lax.top_k(maxima, num_groups)[1], axis=1)[:, :, None]
        found = jnp.take_along_axis(grouped, chosen, axis=1, mode="promise_in_bounds").reshape(len(scores), -1)
        index = (first + chosen * plan.group + jnp.arange(plan.group)).reshape(len(scores), -1)
        found = jnp.where((found > worst) & (index < plan.num_rows), found, -jnp.inf)
        return _best(jnp.concatenate([held_scores, found], 1), jnp.concatenate([held_index, index], 1), k)

    most = min(k, grouped.shape[1])
    if most <= _FEW_GROUPS:
        return take(most)
    few = jnp.sum(maxima > worst, axis=1).max() <= _FEW_GROUPS
    return jax.lax.cond(few, lambda: take(_FEW_GROUPS), lambda: take(most))


def _merge_approximate(
    held_scores: Float32[Array, "Q k"],
    held_index: Int32[Array, "Q k"],
    scores: Float32[Array, "Q b"],
    first: Int32[Array, ""],
    plan: SearchPlan,
) -> tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]]:
    """The same, where each of the k best of a block is found with probability `recall`.

    The recall is a block's own, not the whole memory's: neighbors of a query may all lie in one block.
    """
    k = held_scores.shape[1]
    scores = jnp.where(first + jnp.arange(scores.shape[1]) < plan.num_rows, scores, -jnp.inf)
    found, place = jax.lax.approx_max_k(scores, min(k, scores.shape[1]), recall_target=plan.recall)
    return _best(jnp.concatenate([held_scores, found], 1), jnp.concatenate([held_index, first + place], 1), k)


def _best(
    scores: Float32[Array, "Q c"], index: Int32[Array, "Q c"], k: int
) -> tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]]:
    scores, place = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(index, place, axis=1)
