"""Speculative Jacobi decoding of images (arXiv 2410.01699): drafts several codes and verifies them in one pass.

A pass over W tokens reads the same weights and cache as a pass over one, so every accepted draft token is nearly free.
A draft token sampled from q is accepted with probability min(1, p / q), where p is what the model gives now, and else
replaced by a sample of what p has over q: completions have the distribution of decoding code by code, and with
temperature 0 they are the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from cm3leon_jax.generation.decode import DecodedTokens, PromptBatch, candidate_ids
from cm3leon_jax.generation.prompt import IMAGE_CODE
from cm3leon_jax.generation.sampling import SamplingParams, process_logits, sample_tokens
from cm3leon_jax.models.transformer import Cache, Transformer
from cm3leon_jax.vocabulary import Vocabulary


class SpeculativeState(NamedTuple):
    """The codes so far, as indices into the codebook of K codes, and drafts of those that follow."""

    num_passes: Int[Array, ""]
    num_codes: Int[Array, "B"]
    codes: Int[Array, "B room"]
    # W - 1 draft tokens, and the log-probabilities they were sampled from.
    drafts: Int[Array, "B G"]
    draft_log_probs: Float[Array, "B G K"]
    cache: Cache
    log_likelihood: Float[Array, "B"]


def decode_speculatively(
    parameters: Any,
    batch: PromptBatch,
    hidden: Float[Array, "R D"],
    cache: Cache,
    *,
    graph: nnx.GraphDef,
    vocabulary: Vocabulary,
    params: SamplingParams,
    window: int,
) -> DecodedTokens:
    """As `decode.decode`, for plans of image codes alone: verifies `window` tokens per pass."""
    model: Transformer = nnx.merge(graph, parameters)
    B, M = batch.plan.shape
    S, W, greedy = len(batch.start) // B, window, params.temperature == 0
    ids = jnp.asarray(candidate_ids(frozenset({IMAGE_CODE}), vocabulary))
    table = model.output_table[ids]
    rows, offsets = jnp.arange(B), jnp.arange(W)

    def verify(state: SpeculativeState) -> SpeculativeState:
        keys = jax.vmap(jax.random.fold_in, (0, None))(batch.keys, state.num_passes)
        accept_keys, residual_keys, draft_keys = jnp.moveaxis(_split_keys(keys, 3), 1, 0)
        # The newest code is not in the cache yet; it goes in with the drafts after it.
        newest = state.num_codes - 1
        inputs = jnp.concatenate([state.codes[rows, newest][:, None], state.drafts], axis=1)
        at = newest[:, None] + offsets
        index = jnp.repeat(batch.num_slots + newest, S)
        # Drafts past the end of the image have no position, which keeps them out of the cache.
        positions = jnp.where(jnp.repeat(at < M, S, axis=0), (index - batch.start)[:, None] + offsets, -1)
        hidden, cache = model.extend(
            jnp.repeat(ids[inputs], S, axis=0),
            positions,
            jnp.repeat(batch.start[:, None], W, axis=1),
            jnp.repeat(batch.plan_image_positions[rows[:, None], jnp.minimum(at, M - 1)], S, axis=0),
            state.cache,
            index,
        )
        log_probs, conditional = _log_probs(model, table, hidden, batch, params)
        num_accepted, logits = _accept(accept_keys, log_probs, state)
        last = sample_tokens(residual_keys, logits, greedy)

        new = jnp.concatenate([state.drafts, jnp.zeros((B, 1), jnp.int32)], axis=1).at[rows, num_accepted].set(last)
        is_new = (offsets <= num_accepted[:, None]) & (state.num_codes[:, None] + offsets < M)
        likelihoods = jnp.take_along_axis(conditional, new[..., None], axis=-1)[..., 0]
        drafts, draft_log_probs = _draft(draft_keys, log_probs, num_accepted + 1, W - 1, greedy)
        return SpeculativeState(
            num_passes=state.num_passes + 1,
            num_codes=jnp.minimum(state.num_codes + num_accepted + 1, M),
            codes=jax.vmap(lambda row, part, start: jax.lax.dynamic_update_slice(row, part, (start,)))(
                state.codes, new, state.num_codes
            ),
            drafts=drafts,
            draft_log_probs=draft_log_probs,
            cache=cache,
            log_likelihood=state.log_likelihood + jnp.where(is_new, likelihoods, 0).sum(axis=1),
        )

    def is_unfinished(state: SpeculativeState) -> Bool[Array, ""]:
        return (state.num_codes < M).any()

    log_probs, conditional = _log_probs(model, table, hidden[:, None], batch, params)
    keys = _split_keys(jax.vmap(jax.random.fold_in, (0, None))(batch.keys, 0), 2)
    first = _sample_each(keys[:, 0], log_probs, greedy)
    drafts, draft_log_probs = _draft(keys[:, 1], log_probs, jnp.zeros(B, jnp.int32), W - 1, greedy)
    state = SpeculativeState(
        num_passes=jnp.ones((), jnp.int32),
        num_codes=jnp.ones(B, jnp.int32),
        codes=jnp.zeros((B, M + W), jnp.int32).at[:, 0].set(first[:, 0]),
        drafts=drafts,
        draft_log_probs=draft_log_probs,
        cache=cache,
        log_likelihood=jnp.take_along_axis(conditional[:, 0], first, axis=-1)[:, 0],
    )
    state = jax.lax.while_loop(is_unfinished, verify, state)
    return DecodedTokens(ids[state.codes[:, :M]], state.log_likelihood, state.num_codes, state.num_passes)


def _log_probs(
    model: Transformer,
    table: Float[Array, "K E"],
    hidden: Float[Array, "R n D"],
    batch: PromptBatch,
    params: SamplingParams,
) -> tuple[Float[Array, "B n K"], Float[Array, "B n K"]]:
    """Log-probabilities to sample from at n positions, and those of the prompt without guidance."""
    B, n = len(batch.plan), hidden.shape[1]
    logits = model.logits(hidden, table).reshape(B, -1, n, len(table))
    flat = jnp.swapaxes(logits, 1, 2).reshape(B * n, -1, len(table))
    text_scale, image_scale = jnp.repeat(batch.text_scale, n), jnp.repeat(batch.image_scale, n)
    is_contrastive = None if batch.is_contrastive is None else jnp.repeat(batch.is_contrastive, n)
    scores = process_logits(flat, None, text_scale, image_scale, is_contrastive, params)
    # As in `decode.decode`: a token sampled from logits that are not finite has no likelihood.
    not_finite = jnp.where(jnp.isfinite(scores.max(axis=-1)), 0, jnp.nan).reshape(B, n, 1)
    if params.temperature == 0:
        scores = jnp.where(jax.nn.one_hot(scores.argmax(axis=-1), scores.shape[-1], dtype=bool), 0.0, -jnp.inf)
    return jax.nn.log_softmax(scores).reshape(B, n, -1), jax.nn.log_softmax(logits[:, 0]) + not_finite


def _accept(
    keys: Key[Array, "B"], log_probs: Float[Array, "B W K"], state: SpeculativeState
) -> tuple[Int[Array, "B"], Float[Array, "B K"]]:
    """How many of the first drafts are accepted, and the logits of the token after them."""
    rows, num_drafts = jnp.arange(len(keys)), state.drafts.shape[1]
    log_ratios = log_probs[:, :-1] - state.draft_log_probs
    log_ratio = jnp.take_along_axis(log_ratios, state.drafts[..., None], axis=-1)[..., 0]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (num_drafts,)))(keys)
    num_accepted = jnp.cumprod(jnp.log(uniform) < log_ratio, axis=1).sum(axis=1)
    # At the first rejected draft, or, if all are accepted, after them.
    log_p = log_probs[rows, num_accepted]
    log_q = state.draft_log_probs[rows, jnp.minimum(num_accepted, num_drafts - 1)]
    residual = jnp.exp(log_p) - jnp.exp(log_q)
    is_rejected = (num_accepted < num_drafts)[:, None] & (residual > 0).any(axis=-1, keepdims=True)
    return num_accepted, jnp.where(is_rejected, jnp.log(jnp.maximum(residual, 0)), log_p)


def _draft(
    keys: Key[Array, "B"], log_probs: Float[Array, "B n K"], first: Int[Array, "B"], number: int, greedy: bool
) -> tuple[Int[Array, "B G"], Float[Array, "B G K"]]:
    """Samples draft tokens for the positions from `first` on; past the last distribution, from that one again."""
    at = jnp.minimum(first[:, None] + jnp.arange(number), log_probs.shape[1] - 1)
    draft_log_probs = log_probs[jnp.arange(len(keys))[:, None], at]
    return _sample_each(keys, draft_log_probs, greedy), draft_log_probs


def _sample_each(keys: Key[Array, "B"], log_probs: Float[Array, "B n K"], greedy: bool) -> Int[Array, "B n"]:
    B, n, K = log_probs.shape
    return sample_tokens(_split_keys(keys, n).reshape(-1), log_probs.reshape(B * n, K), greedy).reshape(B, n)


def _split_keys(keys: Key[Array, "B"], number: int) -> Key[Array, "B n"]:
    return jax.vmap(lambda key: jax.random.split(key, number))(keys)
