"""Decodes a batch of prompts in one compiled loop, with a cache, guidance, and only legal tokens.

A step is bound by what it reads: the weights, the output table, and the cache. So weights are held in the type of the
activations, logits are computed only for ids that the prompts' plans allow, and the cache grows with the completions.
An image has as many codes as the image tokenizer gives, stands between breaks, in the frame of the vocabulary if it has
one, and is begun only where it still fits.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from cm3leon_jax.generation.prompt import ANYTHING, IMAGE_CODE, TEXT_TOKEN
from cm3leon_jax.generation.sampling import SamplingParams, process_logits, sample_tokens
from cm3leon_jax.models.cache import grown
from cm3leon_jax.models.transformer import Cache, Transformer
from cm3leon_jax.vocabulary import Vocabulary

# A cache of up to this many slots has its final size from the first step on; a longer one grows so many times.
_SHORT_CACHE, _NUM_SIZES = 256, 4


class PromptBatch(NamedTuple):
    """B prompts, each of S variants; row b * S + s of the cache holds variant s of prompt b."""

    # First slot of each row's prompt, and the slot after all prompts, where the completions begin.
    start: Int[Array, "R"]
    num_slots: Int[Array, ""]
    # Last token of each prompt.
    last: Int[Array, "B"]
    # As in `Prompt`.
    plan: Int[Array, "B M"]
    plan_image_positions: Int[Array, "B M"]
    plan_length: Int[Array, "B"]
    stop: Int[Array, "B"]
    num_spans: Int[Array, "B"]
    image_length: Int[Array, "B"]
    # Guidance.
    text_scale: Float[Array, "B"]
    image_scale: Float[Array, "B"]
    is_contrastive: Bool[Array, "B"] | None
    keys: Key[Array, "B"]


class DecodeState(NamedTuple):
    """The completions so far."""

    step: Int[Array, ""]
    # The last token of each, and its position in an image.
    token: Int[Array, "B"]
    image_position: Int[Array, "B"]
    cache: Cache
    output: Int[Array, "B M"]
    # Summed over the sampled tokens, which excludes those that the plan gives.
    log_likelihood: Float[Array, "B"]
    num_sampled: Int[Array, "B"]
    # Codes that the image in progress still lacks; 0 outside of images, and wherever the plan is not ANYTHING.
    image_tokens_left: Int[Array, "B"]
    # Texts that are still to come, the one in progress included.
    spans_left: Int[Array, "B"]
    done: Bool[Array, "B"]


class DecodedTokens(NamedTuple):
    """The tokens of finished completions."""

    output: Int[Array, "B M"]
    # Of the sampled tokens: their summed log-likelihood, and how many they are.
    log_likelihood: Float[Array, "B"]
    num_sampled: Int[Array, "B"]
    # Passes through the model, prefill excluded.
    num_passes: Int[Array, ""]


def decode(
    parameters: Any,
    batch: PromptBatch,
    hidden: Float[Array, "R D"],
    cache: Cache,
    *,
    graph: nnx.GraphDef,
    vocabulary: Vocabulary,
    kinds: frozenset[int],
    params: SamplingParams,
    cache_sizes: tuple[int, ...],
) -> DecodedTokens:
    """Samples one token per step until every completion is finished.

    Args:
      parameters: of an unstacked model, whose structure is `graph`.
      hidden: the model's hidden state at the end of each variant.
      cache: holds the variants, padded on the left so that all end at slot `num_slots`.
      kinds: which of IMAGE_CODE, TEXT_TOKEN and ANYTHING the plans hold.
      cache_sizes: slots of the cache, first and after each growth.
    """
    model: Transformer = nnx.merge(graph, parameters)
    B, M = batch.plan.shape
    S = len(batch.start) // B
    ids = candidate_ids(kinds, vocabulary)
    table = model.output_table
    if len(ids) < vocabulary.size:
        table = table[ids]

    def sample_next(state: DecodeState, hidden: Float[Array, "R D"]) -> DecodeState:
        logits = model.logits(hidden, table).reshape(B, S, -1)
        # Where only codes can be sampled, only codes have logits.
        legal = None if kinds <= {IMAGE_CODE} else legal_tokens(ids, batch, state, vocabulary)
        scores = process_logits(logits, legal, batch.text_scale, batch.image_scale, batch.is_contrastive, params)
        keys = jax.vmap(jax.random.fold_in, (0, None))(batch.keys, state.step)
        chosen = sample_tokens(keys, scores, greedy=params.temperature == 0)
        forced = forced_tokens(batch, state, vocabulary)
        sampled = jnp.asarray(ids)[chosen]
        token = jnp.where(state.done, vocabulary.pad, jnp.where(forced >= 0, forced, sampled)).astype(jnp.int32)
        counts = ~state.done & (forced < 0)
        conditional = logits[:, 0] if legal is None else jnp.where(legal, logits[:, 0], -jnp.inf)
        chosen_logits = jnp.take_along_axis(conditional, chosen[:, None], axis=-1)[:, 0]
        image_tokens_left = image_tokens_left_after(token, batch, state, vocabulary)
        spans_left = state.spans_left - (token == batch.stop)
        is_free_code = (batch.plan[:, state.step] == ANYTHING) & _is_image(token, vocabulary)
        return state._replace(
            step=state.step + 1,
            token=token,
            image_position=jnp.where(
                is_free_code, batch.image_length - image_tokens_left + 1, batch.plan_image_positions[:, state.step]
            ),
            output=state.output.at[:, state.step].set(token),
            log_likelihood=state.log_likelihood
            + jnp.where(counts, chosen_logits - jax.nn.logsumexp(conditional, axis=-1), 0)
            # A token sampled from logits that are not finite means nothing; its likelihood has to show it.
            + jnp.where(counts & ~jnp.isfinite(scores.max(axis=-1)), jnp.nan, 0),
            num_sampled=state.num_sampled + counts,
            image_tokens_left=image_tokens_left,
            spans_left=spans_left,
            done=state.done | (spans_left == 0) | (state.step + 1 >= batch.plan_length),
        )

    def advance(state: DecodeState) -> DecodeState:
        index = batch.num_slots + state.step - 1
        token, image_position = jnp.repeat(state.token, S)[:, None], jnp.repeat(state.image_position, S)[:, None]
        positions = (index - batch.start)[:, None]
        hidden, cache = model.extend(token, positions, batch.start[:, None], image_position, state.cache, index)
        return sample_next(state._replace(cache=cache), hidden[:, 0])

    def fits(state: DecodeState, size: int) -> Bool[Array, ""]:
        return ~state.done.all() & (batch.num_slots + state.step <= size)

    state = DecodeState(
        step=jnp.zeros((), jnp.int32),
        token=batch.last,
        image_position=jnp.zeros_like(batch.last),
        cache=cache,
        output=jnp.full((B, M), vocabulary.pad, jnp.int32),
        log_likelihood=jnp.zeros(B),
        num_sampled=jnp.zeros(B, jnp.int32),
        image_tokens_left=jnp.zeros(B, jnp.int32),
        spans_left=batch.num_spans,
        done=batch.plan_length == 0,
    )
    state = sample_next(state, hidden)
    for size in cache_sizes:
        state = state._replace(cache=grown(state.cache, size))
        state = jax.lax.while_loop(partial(fits, size=size), advance, state)
    return DecodedTokens(state.output, state.log_likelihood, state.num_sampled, state.step)


def cache_sizes(num_prompt_slots: int, num_slots: int) -> tuple[int, ...]:
    """Slots of a cache while it grows from the prompts to all that the completions need.

    A step reads the whole cache it is given: to read a part of a larger one, XLA would copy it in every step.
    """
    if num_slots <= _SHORT_CACHE:
        return (num_slots,)
    sizes = [num_slots * (n + 1) // _NUM_SIZES for n in range(_NUM_SIZES)]
    return tuple(size for size in sizes if size > num_prompt_slots)


def candidate_ids(kinds: frozenset[int], vocabulary: Vocabulary) -> Int[np.ndarray, "V"]:
    """The ids that plans of these kinds allow, so that no logits are computed for the others.

    For images that is the codebook: an eighth of the paper's vocabulary.
    """
    ids = np.arange(vocabulary.size)
    if ANYTHING in kinds or {IMAGE_CODE, TEXT_TOKEN} <= kinds:
        return ids
    is_image = vocabulary.is_image(ids)
    return ids[~is_image if TEXT_TOKEN in kinds else is_image]


def legal_tokens(
    ids: Int[np.ndarray, "V"], batch: PromptBatch, state: DecodeState, vocabulary: Vocabulary
) -> Bool[Array, "B V"]:
    """Which of `ids` each row may sample next; for a special token that must come, see `forced_tokens`."""
    v, last, plan = vocabulary, state.token, batch.plan[:, state.step]
    is_code, is_text = v.is_image(ids), v.is_text(ids)
    tokens_left, in_image = (
        batch.plan_length - state.step,
        (state.image_tokens_left > 0) | _is_one_of(last, v.begin_image),
    )

    def rows(condition: Bool[Array, "B"]) -> Bool[Array, "B 1"]:
        return condition[:, None]

    begins = (last == v.break_) | (last == v.end)
    after_codes = _is_image(last, v) & ~in_image
    after_image = _is_one_of(last, v.end_image) if v.end_image else after_codes
    fits = begins & (tokens_left >= v.image_segment_length(0) + batch.image_length) & (batch.image_length > 0)
    anything = (
        (is_text & rows(~after_image))
        | ((np.isin(ids, v.begin_image) if v.begin_image else is_code) & rows(fits))
        # A break promises another segment, and needs room for it.
        | ((ids == v.break_) & rows(~begins & (tokens_left >= 2)))
        | ((ids == v.end) & rows(~begins))
    )
    if v.end_image:
        anything = jnp.where(rows(after_codes), np.isin(ids, v.end_image), anything)
    anything = jnp.where(rows(in_image), is_code, anything)
    legal = jnp.where(rows(plan == ANYTHING), anything, True)
    legal = jnp.where(rows(plan == TEXT_TOKEN), is_text | (ids == batch.stop[:, None]), legal)
    return jnp.where(rows(plan == IMAGE_CODE), is_code, legal)


def forced_tokens(batch: PromptBatch, state: DecodeState, vocabulary: Vocabulary) -> Int[Array, "B"]:
    """The special token that must come next, or -1: the plan's own, or the one that opens the next text."""
    plan = batch.plan[:, state.step]
    opens_next = (plan == TEXT_TOKEN) & (state.token == batch.stop) & (state.spans_left < batch.num_spans)
    return jnp.where(opens_next, vocabulary.first_mask + batch.num_spans - state.spans_left, jnp.maximum(plan, -1))


def image_tokens_left_after(
    token: Int[Array, "B"], batch: PromptBatch, state: DecodeState, vocabulary: Vocabulary
) -> Int[Array, "B"]:
    """`DecodeState.image_tokens_left` once `token` is chosen."""
    left = jnp.where(state.image_tokens_left > 0, state.image_tokens_left, batch.image_length) - 1
    return jnp.where((batch.plan[:, state.step] == ANYTHING) & _is_image(token, vocabulary), left, 0)


def _is_one_of(tokens: Int[Array, "B"], ids: tuple[int, ...]) -> Bool[Array, "B"]:
    return jnp.isin(tokens, np.array(ids, np.int32))


def _is_image(tokens: Int[Array, "B"], vocabulary: Vocabulary) -> Bool[Array, "B"]:
    return jnp.asarray(vocabulary.is_image(np.arange(vocabulary.size)))[tokens]
