"""Embedding lookup under FSDP, and the collectives that move an embedding table.

A table is sharded along its columns over the devices that hold other rows of the batch. Every device gathers the
columns of its rows once and looks up its part of the batch. Left to XLA, each would look up its few columns for all
tokens of the batch, and the gradient would be all-reduced whole.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from cm3leon_jax.models.sharding import BATCH_AXES, RULES

# A TPU's compiler (libtpu 0.0.52) reduce-scatters an array along its rows if they are a multiple of this long; others,
# and those along columns, it all-reduces whole.
_SCATTERED_WIDTH = 4096


def embed(table: Float[Array, "V E"], ids: Int[Array, "B L"], rows_axis: str) -> Float[Array, "B L E"]:
    """The row of each id; `rows_axis` is the logical name of the table's rows."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return table[ids]
    rows = RULES[rows_axis]
    batch = BATCH_AXES if ids.shape[0] % (mesh.shape["replica"] * mesh.shape["fsdp"]) == 0 else None

    def local(table: Array, ids: Array) -> Array:
        table = gather_columns(table)
        if rows is None:
            return table[ids]
        row = ids - jax.lax.axis_index(rows) * table.shape[0]
        is_local = (row >= 0) & (row < table.shape[0])
        return jax.lax.psum(jnp.where(is_local[..., None], table[jnp.where(is_local, row, 0)], 0), rows)

    return jax.shard_map(
        local,
        in_specs=(PartitionSpec(rows, RULES["embed"]), PartitionSpec(batch)),
        out_specs=PartitionSpec(batch),
        check_vma=False,
    )(table, ids)


def gather_columns(table: Float[Array, "V e"]) -> Float[Array, "V E"]:
    """Inside `shard_map`: all columns of a column-sharded table; its gradient is reduce-scattered."""
    transposed = jax.lax.all_gather(_padded(table.T), RULES["embed"], axis=0, tiled=True)
    return transposed[:, : table.shape[0]].T


def scatter_columns(transposed: Float[Array, "E V"]) -> Float[Array, "V e"]:
    """Inside `shard_map`: the sum over devices of a transposed table, column-sharded."""
    scattered = jax.lax.psum_scatter(_padded(transposed), RULES["embed"], scatter_dimension=0, tiled=True)
    return scattered[:, : transposed.shape[1]].T


def sent_width(num_rows: int) -> int:
    """The padded length of a transposed table's rows when they are sent between devices."""
    # Short ones would mostly be padding, and cost little either way.
    return num_rows if num_rows < _SCATTERED_WIDTH else num_rows + -num_rows % _SCATTERED_WIDTH


def _padded(rows: Float[Array, "e V"]) -> Float[Array, "e W"]:
    return jnp.pad(rows, ((0, 0), (0, sent_width(rows.shape[1]) - rows.shape[1])))
