"""From logits to a token: guidance, temperature, top-k, top-p, contrastive decoding.

All of it runs inside the compiled loop, and nothing sorts the vocabulary: thresholds are found by bisection, tokens by
inverting the cumulative distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cm3leon_jax.generation.config import SamplingConfig

# Tokens whose probabilities are summed first when a token is sampled.
_BLOCK = 128


class SamplingParams(NamedTuple):
    """The part of the config that is static in the compiled loop."""

    temperature: float
    top_p: float
    top_k: int
    contrastive_k: int
    contrastive_alpha: float
    amateur_temperature: float

    @classmethod
    def of(cls, sampling: SamplingConfig) -> SamplingParams:
        return cls(*(getattr(sampling, name) for name in cls._fields))


def is_contrastive(candidate: int, method: str) -> bool:
    """Whether a request's n-th candidate is sampled by CD-K, under `config.sampling.method`."""
    return method == "contrastive" or (method == "mixed" and candidate % 2 == 1)


def guided_logits(
    conditional: Float[Array, "B V"], unconditional: Float[Array, "B V"], scale: Float[Array, "B 1"] | float
) -> Float[Array, "B V"]:
    """Classifier-free guidance: from the unconditional towards the conditional logits (arXiv 2309.02591, eq. 1)."""
    return unconditional + scale * (conditional - unconditional)


def edit_guided_logits(
    full: Float[Array, "B V"],
    image_only: Float[Array, "B V"],
    unconditional: Float[Array, "B V"],
    text_scale: Float[Array, "B 1"] | float,
    image_scale: Float[Array, "B 1"] | float,
) -> Float[Array, "B V"]:
    """Guidance with two weights: towards the source image, then towards the instruction (arXiv 2211.09800, eq. 3)."""
    return unconditional + image_scale * (image_only - unconditional) + text_scale * (full - image_only)


def contrastive_scores(
    expert: Float[Array, "B V"], amateur: Float[Array, "B V"], k: int, alpha: float
) -> Float[Array, "B V"]:
    """CD-K: log p_expert - log p_amateur over the tokens that the expert finds likely (arXiv 2309.02591, eq. 3).

    Likely is a probability of at least `alpha` times the k-th largest; the largest (k = 1) is contrastive decoding as
    first published, which leaves almost nothing to sample from.
    """
    expert, amateur = jax.nn.log_softmax(expert), jax.nn.log_softmax(amateur)
    kth_largest = jax.lax.top_k(expert, min(k, expert.shape[-1]))[0][:, -1:]
    return jnp.where(expert >= kth_largest + jnp.log(alpha), expert - amateur, -jnp.inf)


def keep_top_k(logits: Float[Array, "B V"], top_k: int) -> Float[Array, "B V"]:
    """Minus infinity for all but the `top_k` likeliest tokens and their equals."""
    kth_largest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < kth_largest, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
    """Minus infinity for all but the likeliest tokens: one stays while those before it sum to less than `top_p`."""
    odds = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    enough = top_p * odds.sum(axis=-1)
    # Positive floats are ordered like their bits, so thirty halvings find the smallest odds with less than `enough`
    # above them, to the last bit.
    bits = jax.lax.bitcast_convert_type(odds, jnp.int32)

    def halve(_: Int[Array, ""], ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        above = jnp.where(bits > middle[:, None], odds, 0.0).sum(axis=-1)
        is_little = above < enough
        return jnp.where(is_little, low, middle + 1), jnp.where(is_little, middle, high)

    top = bits.max(axis=-1)
    _, threshold = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(top), top))
    return jnp.where(bits < threshold[:, None], -jnp.inf, logits)


def process_logits(
    logits: Float[Array, "B S V"],
    legal: Bool[Array, "B V"] | None,
    text_scale: Float[Array, "B"],
    image_scale: Float[Array, "B"],
    is_contrastive: Bool[Array, "B"] | None,
    params: SamplingParams,
) -> Float[Array, "B V"]:
    """The distribution of the next token, as logits.

    The S variants are the prompt's own; then, for guidance, the one without the text; then without text and image.
    Rows that are contrastive use CD-K, with the second variant as the amateur.
    """
    match [logits[:, s] for s in range(logits.shape[1])]:
        case [guided]:
            pass
        case [conditional, unconditional]:
            guided = guided_logits(conditional, unconditional, text_scale[:, None])
        case [full, image_only, unconditional]:
            guided = edit_guided_logits(full, image_only, unconditional, text_scale[:, None], image_scale[:, None])
    if legal is not None:
        guided = jnp.where(legal, guided, -jnp.inf)
    temperature = params.temperature or 1.0
    scores = guided / temperature
    if params.top_k:
        scores = keep_top_k(scores, params.top_k)
    if params.top_p < 1:
        scores = keep_top_p(scores, params.top_p)
    if is_contrastive is None or logits.shape[1] == 1:
        return scores
    expert, amateur = logits[:, 0] / temperature, logits[:, 1] / params.amateur_temperature
    if legal is not None:
        expert = jnp.where(legal, expert, -jnp.inf)
    contrasted = contrastive_scores(expert, amateur, params.contrastive_k, params.contrastive_alpha)
    return jnp.where(is_contrastive[:, None], contrasted, scores)


def sample_tokens(keys: Key[Array, "B"], logits: Float[Array, "B V"], greedy: bool) -> Int[Array, "B"]:
    """Samples one token per row from the softmax of its logits, or takes the likeliest."""
    if greedy:
        return logits.argmax(axis=-1)
    B, V = logits.shape
    padding = ((0, 0), (0, -V % _BLOCK))
    odds = jnp.pad(jnp.exp(logits - logits.max(axis=-1, keepdims=True)), padding).reshape(B, -1, _BLOCK)
    uniform = jax.vmap(jax.random.uniform)(keys)
    # First the block, then the token in it: one pass over the vocabulary. Odds of zero are never chosen, however the
    # sums were rounded.
    block_sums = odds.sum(axis=-1)
    block_ends = jnp.cumsum(block_sums, axis=-1)
    target = uniform * block_ends[:, -1]
    block = ((block_ends >= target[:, None]) & (block_sums > 0)).argmax(axis=-1)
    rows = jnp.arange(B)
    inside = odds[rows, block]
    ends = (block_ends - block_sums)[rows, block][:, None] + jnp.cumsum(inside, axis=-1)
    reached = (ends >= target[:, None]) & (inside > 0)
    last = _BLOCK - 1 - (inside[:, ::-1] > 0).argmax(axis=-1)
    return block * _BLOCK + jnp.where(reached.any(axis=-1), reached.argmax(axis=-1), last)
