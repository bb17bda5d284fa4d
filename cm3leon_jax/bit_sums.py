"""Sums over the bits of arrays, which say whether they are what was written."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt32

from cm3leon_jax.models.sharding import parameter_name


def bit_sums(arrays: Any) -> dict[str, int]:
    """A sum over the bits of every array, by its name: equal exactly where the bits are, on any mesh."""
    return {name: bits for name, (bits, _) in sums_and_finiteness(arrays).items()}


def sums_and_finiteness(arrays: Any) -> dict[str, tuple[int, bool]]:
    """The sum over the bits of every array, and whether all of it is finite, by its name."""
    # Array by array, since there are few shapes to compile; and one after the other, since a CPU's devices can wait for
    # each other forever where several programs with collectives are under way.
    jax.block_until_ready(arrays)
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        bits, is_finite = _sum_and_finite(leaf)
        found[parameter_name(path)] = int(bits), bool(is_finite)
    return found


@jax.jit
def _sum_and_finite(array: Shaped[Array, "..."]) -> tuple[UInt32[Array, ""], Bool[Array, ""]]:
    return _bit_sum(array), jnp.isfinite(array).all()


def _bit_sum(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Modulo 2**32, so in any order; each element with a weight of its place, so that none may change places.

    Weights are odd, and so have inverses modulo 2**32: no single element can change unnoticed. From the first axis on,
    since that is how a CPU sums fast.
    """
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    sums = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    for axis, size in enumerate(array.shape):
        weights = 2 * jax.lax.iota(jnp.uint32, size) * np.uint32(2654435761 + axis) + 1
        sums = jnp.sum(sums * weights.reshape(-1, *(1,) * (sums.ndim - 1)), axis=0, dtype=jnp.uint32)
    return sums


def bit_sum_of_part(part: Shaped[np.ndarray, "..."], start: tuple[int, ...]) -> int:
    """What a part of an array, which begins at `start` on its first axes, adds to `_bit_sum`: numpy's twin of it."""
    sums = part.view(f"uint{8 * part.dtype.itemsize}").astype(np.uint32, copy=False)
    for axis, size in enumerate(part.shape):
        places = np.arange(size, dtype=np.uint32) + np.uint32(start[axis] if axis < len(start) else 0)
        weights = 2 * places * np.uint32(2654435761 + axis) + np.uint32(1)
        sums = np.einsum("i,i...->...", weights, sums)
    return int(sums)
