"""What training needs to be fast on a CPU, and nothing else: gradients in the order that XLA:CPU likes, and memory.

XLA:CPU has a fast kernel for rows times columns alone. The gradient with respect to a weight contracts the tokens of
both operands, so one has to be transposed, and XLA transposes neither, or the larger one. On accelerators each function
is the plain einsum. benchmarks/RESULTS.md, "A training step on a CPU", says what this is worth.
"""

from __future__ import annotations

import ctypes
import platform as host
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from cm3leon_jax.accelerators import host_has_gpu, host_has_tpu
from cm3leon_jax.models.sharding import platform

# glibc's mallopt(3): one arena, no block of its own map, nothing handed back.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1


def einsum(equation: str, x: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` of activations and a weight, such as "BLD,DF->BLF", with a fast gradient on a CPU."""
    return (_einsum_on_cpu if platform() == "cpu" else jnp.einsum)(equation, x, weight)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_on_cpu(equation: str, x: Array, weight: Array) -> Array:
    return jnp.einsum(equation, x, weight)


def _einsum_forward(equation: str, x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.einsum(equation, x, weight), (x, weight)


def _einsum_backward(equation: str, saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, weight = saved
    operands, out_axes = equation.split("->")
    x_axes, weight_axes = operands.split(",")
    d_x = jnp.einsum(f"{out_axes},{weight_axes}->{x_axes}", d_out, weight)
    if x.size <= d_out.size:
        return d_x, contract_tokens(f"{x_axes},{out_axes}->{weight_axes}", x, d_out)
    return d_x, contract_tokens(f"{out_axes},{x_axes}->{weight_axes}", d_out, x)


_einsum_on_cpu.defvjp(_einsum_forward, _einsum_backward)


def contract_tokens(
    equation: str, narrow: Float[Array, "..."], wide: Float[Array, "..."], dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """`jnp.einsum(equation, narrow, wide)` where the axes that are summed come first, such as "BLD,BLF->DF".

    Args:
      narrow: the smaller operand, which is transposed on a CPU.
      dtype: of the sums and the result, by default that of the operands.
    """
    if platform() != "cpu":
        return jnp.einsum(equation, narrow, wide, preferred_element_type=dtype)
    operands, out_axes = equation.split("->")
    narrow_axes, wide_axes = operands.split(",")
    kept = "".join(axis for axis in narrow_axes if axis in out_axes)
    others = "".join(axis for axis in wide_axes if axis in out_axes and axis not in kept)
    summed = "".join(axis for axis in narrow_axes if axis not in out_axes)
    # The barriers keep XLA from folding the transposes back into the matmul.
    transposed = jax.lax.optimization_barrier(jnp.einsum(f"{narrow_axes}->{kept}{summed}", narrow))
    out = jnp.einsum(f"{kept}{summed},{wide_axes}->{kept}{others}", transposed, wide, preferred_element_type=dtype)
    return jnp.einsum(f"{kept}{others}->{out_axes}", jax.lax.optimization_barrier(out))


def attention_vjp(saved: tuple[Array, ...], d_out: Float[Array, "B H L Dh"]) -> tuple[Array, Array, Array, None]:
    """The gradient of attention with respect to queries, keys and values, given its softmax weights and output.

    The softmax needs the mean of `d_weights` under the weights: a sum over the Dh numbers of each query's output, not
    over all its keys (FlashAttention, arXiv 2205.14135, appendix B.2).
    """
    query, key, value, weights, out = saved
    mean = (d_out * out).astype(jnp.float32).sum(axis=-1, keepdims=True)
    # The query heads of a key head side by side: one matmul per key head.
    query, weights, mean, d_grouped = (
        x.reshape(*key.shape[:2], -1, x.shape[-1]) for x in (query, weights, mean, d_out)
    )
    d_value = contract_tokens("BKld,BKlS->BKSd", d_grouped, weights.astype(value.dtype))
    d_weights = jnp.einsum("BKld,BKSd->BKlS", d_grouped, value, preferred_element_type=jnp.float32)
    d_logits = (weights * (d_weights - mean) * query.shape[-1] ** -0.5).astype(query.dtype)
    d_query = jnp.einsum("BKlS,BKSd->BKld", d_logits, key).reshape(d_out.shape)
    return d_query, contract_tokens("BKld,BKlS->BKSd", query, d_logits), d_value, None


def keep_freed_memory() -> None:
    """Has glibc keep freed memory, so that the pages of a step's buffers are not mapped again for every step.

    To be called before JAX first uses a device: the threads that it starts keep the arenas they have, and only the
    first arena can keep a large block. Does nothing where the host has an accelerator or another C library.
    """
    if host.libc_ver()[0] == "glibc" and not (host_has_gpu() or host_has_tpu()):
        library = ctypes.CDLL(None)
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            library.mallopt(option, value)
