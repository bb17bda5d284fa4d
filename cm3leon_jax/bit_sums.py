"""Sums the bits of arrays, to tell whether they are what was written, on any mesh and by parts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt32

from cm3leon_jax.models.sharding import parameter_name


def sums_and_finiteness(arrays: Any) -> dict[str, tuple[int, bool]]:
    """The sum over the bits of every array, and whether all of it is finite, by its name."""
    # One program per array, since there are few shapes to compile. One after the other, since on a CPU the devices can
    # wait for each other forever when several programs with collectives run.
    jax.block_until_ready(arrays)
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        bits, is_finite = _sum_and_finite(leaf)
        found[parameter_name(path)] = int(bits), bool(is_finite)
    return found


@jax.jit
def _sum_and_finite(array: Shaped[Array, "..."]) -> tuple[UInt32[Array, ""], Bool[Array, ""]]:
    """Sums the bits modulo 2**32, in any order, each element weighted by its position, so that none can be swapped.

    Odd weights have inverses modulo 2**32, so a change of a single element is always detected. A CPU sums fastest from
    the first axis on.
    """
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    sums = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    for axis, size in enumerate(array.shape):
        weights = 2 * jax.lax.iota(jnp.uint32, size) * np.uint32(2654435761 + axis) + 1
        sums = jnp.sum(sums * weights.reshape(-1, *(1,) * (sums.ndim - 1)), axis=0, dtype=jnp.uint32)
    return sums, jnp.isfinite(array).all()


def bit_sum_of_part(part: Shaped[np.ndarray, "..."], start: tuple[int, ...]) -> int:
    """What the part of an array that begins at `start` on its first axes adds to the sum of the whole, in NumPy."""
    sums = part.view(f"uint{8 * part.dtype.itemsize}").astype(np.uint32, copy=False)
    for axis, size in enumerate(part.shape):
        positions = np.arange(size, dtype=np.uint32) + np.uint32(start[axis] if axis < len(start) else 0)
        weights = 2 * positions * np.uint32(2654435761 + axis) + np.uint32(1)
        sums = np.einsum("i,i...->...", weights, sums)
    return int(sums)
