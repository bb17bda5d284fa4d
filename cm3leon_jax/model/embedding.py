"""Rows of a table by id, when the table's columns are shared out over the devices that hold other rows of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from cm3leon_jax.model.sharding import BATCH_AXES, RULES


def look_up(table: Float[Array, "V E"], ids: Int[Array, "B L"], rows_axis: str) -> Float[Array, "B L E"]:
    """The row of each id; `rows_axis` is the logical name of the table's rows.

    On a mesh every device gathers the columns of its rows once and looks up its part of the batch. Left to XLA, each
    would look up its few columns for all tokens of the batch, and the gradient would be all-reduced whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return table[ids]
    rows = RULES[rows_axis]
    batch = BATCH_AXES if ids.shape[0] % (mesh.shape["replica"] * mesh.shape["fsdp"]) == 0 else None

    def local(table: Array, ids: Array) -> Array:
        # Turned, since a TPU scatters along the rows of an array, not along a few of its columns.
        whole = jax.lax.all_gather(table.T, RULES["embed"], axis=0, tiled=True).T
        if rows is None:
            return whole[ids]
        here = ids - jax.lax.axis_index(rows) * whole.shape[0]
        is_here = (here >= 0) & (here < whole.shape[0])
        found = jnp.where(is_here[..., None], whole[jnp.where(is_here, here, 0)], 0)
        return jax.lax.psum(found, rows)

    return jax.shard_map(
        local,
        in_specs=(PartitionSpec(rows, RULES["embed"]), PartitionSpec(batch)),
        out_specs=PartitionSpec(batch),
        check_vma=False,
    )(table, ids)
