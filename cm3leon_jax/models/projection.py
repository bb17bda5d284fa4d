"""Activations times a weight, with a gradient by the weight that is fast on a CPU too.

That gradient is a product along the first axes of both its sides, the tokens. XLA's fast kernel for a CPU takes only
rows by columns, so one side has to be turned, and left to itself XLA turns neither, or the wide one. Compilers of
accelerators need no help: there, it is the plain product.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cm3leon_jax.models.sharding import platform


def project(equation: str, x: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum(equation, x, weight)`: "BLD,DHd->BLHd"."""
    product = _product_on_cpu if platform() == "cpu" else jnp.einsum
    return product(equation, x, weight)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product_on_cpu(equation: str, x: Array, weight: Array) -> Array:
    return jnp.einsum(equation, x, weight)


def _forward(equation: str, x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.einsum(equation, x, weight), (x, weight)


def _backward(equation: str, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = kept
    sides, of_slope = equation.split("->")
    of_x, of_weight = sides.split(",")
    d_x = jnp.einsum(f"{of_slope},{of_weight}->{of_x}", gradient, weight)
    if x.size <= gradient.size:
        return d_x, over_tokens(f"{of_x},{of_slope}->{of_weight}", x, gradient)
    return d_x, over_tokens(f"{of_slope},{of_x}->{of_weight}", gradient, x)


_product_on_cpu.defvjp(_forward, _backward)


def over_tokens(equation: str, narrow: Float[Array, "..."], wide: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum(equation, narrow, wide)`, fast on a CPU where the axes that are summed come first: "BLD,BLF->DF"."""
    if platform() != "cpu":
        return jnp.einsum(equation, narrow, wide)
    sides, of_result = equation.split("->")
    of_narrow, of_wide = sides.split(",")
    rows = "".join(axis for axis in of_narrow if axis in of_result)
    columns = "".join(axis for axis in of_wide if axis in of_result and axis not in rows)
    summed = "".join(axis for axis in of_narrow if axis not in of_result)
    # Behind a barrier, or XLA would take the turn for a part of the product, and be back at its slow kernel.
    transposed = jax.lax.optimization_barrier(jnp.einsum(f"{of_narrow}->{rows}{summed}", narrow))
    product = jnp.einsum(f"{rows}{summed},{of_wide}->{rows}{columns}", transposed, wide)
    return jnp.einsum(f"{rows}{columns}->{of_result}", jax.lax.optimization_barrier(product))
