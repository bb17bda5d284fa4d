"""Codebook statistics: how often each code is used, running means of its latents, and the revival of dead codes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# Below this running use the ratio of sums to uses has lost its digits; the code stays where it is.
LEAST_USE = 1e-12


class CodebookStatistics(NamedTuple):
    """Running means over steps: `usage` in uses per step, `sums` of the latents nearest to each code."""

    usage: Float[Array, " K"]
    sums: Float[Array, "K E"]


def sample_latents(latents: Float[Array, "N E"], count: int, key: Key[Array, ""]) -> Float[Array, "count E"]:
    """`count` random rows of `latents`, each at most once while there are enough."""
    rows = jax.random.choice(key, latents.shape[0], (count,), replace=latents.shape[0] < count)
    return latents[rows]


def initial_statistics(embedding: Float[Array, "K E"], latents_per_step: int) -> CodebookStatistics:
    """As if every code had so far been used equally often, by latents equal to it."""
    usage = jnp.full(embedding.shape[0], latents_per_step / embedding.shape[0], jnp.float32)
    return CodebookStatistics(usage=usage, sums=usage[:, None] * embedding)


def count_codes(codes: Int[Array, " N"], codebook_size: int) -> Int[Array, " K"]:
    return jnp.bincount(codes, length=codebook_size)


def update_usage(statistics: CodebookStatistics, counts: Int[Array, " K"], decay: float) -> CodebookStatistics:
    """One step of the running use alone: what a codebook that moves by gradient needs to find its dead codes."""
    return CodebookStatistics(usage=_running(statistics.usage, counts, decay), sums=statistics.sums)


def update_means(
    statistics: CodebookStatistics,
    embedding: Float[Array, "K E"],
    latents: Float[Array, "N E"],
    codes: Int[Array, " N"],
    decay: float,
) -> tuple[CodebookStatistics, Float[Array, "K E"]]:
    """One step of the running means; each vector becomes the mean of its latents (arXiv 1711.00937, appendix A.1)."""
    # A product with one-hot rows, not a scatter: the sum is the same bit for bit on every run and every accelerator.
    one_hot = jax.nn.one_hot(codes, embedding.shape[0], dtype=latents.dtype)
    sums = jnp.einsum("nk,ne->ke", one_hot, latents, precision=jax.lax.Precision.HIGHEST)
    updated = CodebookStatistics(
        usage=_running(statistics.usage, one_hot.sum(axis=0), decay), sums=_running(statistics.sums, sums, decay)
    )
    usage = updated.usage[:, None]
    return updated, jnp.where(usage > LEAST_USE, updated.sums / jnp.maximum(usage, LEAST_USE), embedding)


def revive_dead_codes(
    statistics: CodebookStatistics,
    embedding: Float[Array, "K E"],
    latents: Float[Array, "N E"],
    threshold: float,
    key: Key[Array, ""],
) -> tuple[CodebookStatistics, Float[Array, "K E"]]:
    """Replaces every code whose use is under `threshold` (uses per step) by a random latent of the batch."""
    dead = statistics.usage < threshold
    embedding = jnp.where(dead[:, None], sample_latents(latents, embedding.shape[0], key), embedding)
    # At the threshold: a code that is not used after this either falls below it, and is replaced again.
    usage = jnp.where(dead, threshold, statistics.usage)
    sums = jnp.where(dead[:, None], threshold * embedding, statistics.sums)
    return CodebookStatistics(usage=usage, sums=sums), embedding


def perplexity(counts: Int[Array, " K"]) -> Float[Array, ""]:
    """exp of the entropy of the code frequencies: K when all codes are used alike, 1 when one takes all."""
    frequencies = counts / jnp.maximum(counts.sum(), 1)
    return jnp.exp(-jnp.sum(frequencies * jnp.log(jnp.maximum(frequencies, jnp.finfo(frequencies.dtype).tiny))))


def _running(mean: Array, value: Array, decay: float) -> Array:
    return decay * mean + (1 - decay) * value
