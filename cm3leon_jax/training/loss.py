"""The training loss: weighted cross-entropy, and its parts by modality.

There are 65,000 float32 logits for every token. So the gradients of the output projection are computed together with
the loss, chunk by chunk of the tokens, and the logits are never kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from cm3leon_jax.models.cpu import contract_tokens
from cm3leon_jax.models.embedding import gather_columns, scatter_columns
from cm3leon_jax.models.sharding import BATCH_AXES, BATCH_SPEC
from cm3leon_jax.vocabulary import Vocabulary


class LossSums(NamedTuple):
    """Weighted sums of cross-entropy in nats, and sums of the weights, of images' codes and of all other tokens."""

    text: Float[Array, ""]
    image: Float[Array, ""]
    num_text: Float[Array, ""]
    num_image: Float[Array, ""]

    @property
    def mean(self) -> Float[Array, ""]:
        """Nats per token, over all tokens."""
        return (self.text + self.image) / jnp.maximum(self.num_text + self.num_image, 1)

    def by_modality(self) -> dict[str, Float[Array, ""]]:
        """Nats per token: of all, of text and special tokens, of images; and the number of tokens of the two.

        Where that is 0, the loss means nothing: `without_absent` removes it.
        """
        return {
            "loss": self.mean,
            "loss_text": self.text / jnp.maximum(self.num_text, 1),
            "loss_image": self.image / jnp.maximum(self.num_image, 1),
            "num_text": self.num_text,
            "num_image": self.num_image,
        }


def without_absent(values: Mapping[str, float]) -> dict[str, float]:
    """The measured values without the losses of modalities that had no targets, under whatever prefix."""
    absent = {
        name.replace("num_", "loss_")
        for name, value in values.items()
        if name.endswith(("num_text", "num_image")) and not value
    }
    return {name: value for name, value in values.items() if name not in absent}


def absent_modalities(values: Mapping[str, float]) -> str:
    """For the progress line: the modalities that a batch has no targets of."""
    absent = [name for name in ("text", "image") if values.get(f"num_{name}") == 0]
    return f", no {' and no '.join(absent)} tokens" if absent else ""


def loss_sums(
    losses: Float[Array, "B L"], targets: Int[Array, "B L"], weights: Float[Array, "B L"], vocabulary: Vocabulary
) -> LossSums:
    """Weighted sums of the tokens' losses over the whole (global) batch, and of the weights."""
    is_image = vocabulary.is_image(targets)
    weighted = losses * weights
    return LossSums(
        text=jnp.where(is_image, 0, weighted).sum(),
        image=jnp.where(is_image, weighted, 0).sum(),
        num_text=jnp.where(is_image, 0, weights).sum(),
        num_image=jnp.where(is_image, weights, 0).sum(),
    )


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def head_loss(
    hidden: Float[Array, "B L E"],
    table: Float[Array, "V E"],
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    z_loss: float = 0.0,
    num_chunks: int = 1,
) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
    """The weighted sum of the tokens' losses, to be differentiated; and -log p(target) of each, in nats, to be logged.

    Needs the mesh in its context (`jax.set_mesh`): a device computes the logits of its rows and its part of the ids, in
    `num_chunks` one after the other. Matmuls are of the type of `hidden`, the input of the output projection; padding
    has weight 0; `z_loss` weighs the squared log of the softmax's denominator (arXiv 2204.02311, section 5).
    """
    total, losses, _, _ = _on_every_device(hidden, table, targets, weights, z_loss, num_chunks, with_gradients=False)
    return total, losses


def _head_loss_forward(
    hidden: Array, table: Array, targets: Array, weights: Array, z_loss: float, num_chunks: int
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    total, losses, d_hidden, d_table = _on_every_device(
        hidden, table, targets, weights, z_loss, num_chunks, with_gradients=True
    )
    assert d_hidden is not None and d_table is not None
    return (total, losses), (d_hidden, d_table)


def _head_loss_backward(
    z_loss: float, num_chunks: int, gradients: tuple[Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, None, None]:
    d_hidden, d_table = gradients
    scale, _ = cotangents
    return d_hidden * scale.astype(d_hidden.dtype), d_table * scale, None, None


head_loss.defvjp(_head_loss_forward, _head_loss_backward)


def _on_every_device(
    hidden: Array, table: Array, targets: Array, weights: Array, z_loss: float, num_chunks: int, with_gradients: bool
) -> tuple[Array, Array, Array | None, Array | None]:
    """Loss, losses per token, and, with gradients, those of the loss by hidden and table."""
    by_table = PartitionSpec("tensor", "fsdp")

    @partial(
        jax.shard_map,
        in_specs=(BATCH_SPEC, by_table, BATCH_SPEC, BATCH_SPEC),
        out_specs=(PartitionSpec(), BATCH_SPEC, *((BATCH_SPEC, by_table) if with_gradients else (None, None))),
        check_vma=False,
    )
    def local(hidden: Array, table: Array, targets: Array, weights: Array) -> tuple[Array | None, ...]:
        rows, length, _ = hidden.shape
        # Gathered once, in the type of the matmuls; its gradient is scattered once, after all chunks.
        whole = gather_columns(table.astype(hidden.dtype))

        def chunk(d_table: Array | None, tokens: tuple[Array, Array, Array]) -> tuple[Array | None, tuple]:
            losses, gradient = _chunk_losses(tokens, whole, z_loss)
            if d_table is None:
                return None, (*losses, None)
            # Computed once, not for each of its two matmuls.
            gradient = jax.lax.optimization_barrier(gradient)
            d_hidden = jax.lax.psum(jnp.einsum("nV,VE->nE", gradient, whole), "tensor")
            d_table += contract_tokens("nE,nV->EV", tokens[0], gradient, jnp.float32)
            return d_table, (*losses, d_hidden)

        def by_chunk(part: Array) -> Array:
            return part.reshape(num_chunks, -1, *part.shape[2:])

        d_table = jnp.zeros(whole.shape[::-1], jnp.float32) if with_gradients else None
        chunks = by_chunk(hidden), by_chunk(targets), by_chunk(weights)
        d_table, (totals, losses, d_hidden) = jax.lax.scan(chunk, d_table, chunks, unroll=num_chunks == 1)
        total = jax.lax.psum(totals.sum(), BATCH_AXES)
        losses = losses.reshape(rows, length)
        if d_table is None:
            return total, losses, None, None
        return total, losses, d_hidden.reshape(hidden.shape), jax.lax.psum(scatter_columns(d_table), "replica")

    return local(hidden, table, targets, weights)


def _chunk_losses(
    tokens: tuple[Float[Array, "n E"], Int[Array, "n"], Float[Array, "n"]], table: Float[Array, "W E"], z_loss: float
) -> tuple[tuple[Float[Array, ""], Float[Array, "n"]], Float[Array, "n W"]]:
    """Weighted sum and losses of some tokens, and the gradient of the sum by their logits of this device's ids."""
    features, targets, weights = tokens
    logits = jnp.einsum("nE,VE->nV", features, table, preferred_element_type=jnp.float32)
    highest = jax.lax.pmax(logits.max(axis=-1), "tensor")
    exponentials = jnp.exp(logits - highest[:, None])
    denominator = jax.lax.psum(exponentials.sum(axis=-1), "tensor")
    log_denominator = jnp.log(denominator) + highest
    first = jax.lax.axis_index("tensor") * table.shape[0]
    # A masked sum, not a gather: each device has its own ids.
    is_target = first + jnp.arange(table.shape[0]) == targets[:, None]
    losses = log_denominator - jax.lax.psum(jnp.where(is_target, logits, 0).sum(axis=-1), "tensor")
    total = (weights * (losses + z_loss * jnp.square(log_denominator))).sum()
    scale = weights * (1 + 2 * z_loss * log_denominator) / denominator
    gradient = exponentials * scale[:, None] - jnp.where(is_target, weights[:, None], 0)
    return (total, losses), gradient.astype(features.dtype)
