"""Cached decoding of a batch of prompts in one compiled loop, with guidance and only legal tokens.

What bounds a step is what it reads: the weights, the table of the scores it computes, and the cache. So weights are
held in the type of the activations, scores are computed only for ids that the prompts' plans let through, and the
cache grows with the answers. Nothing returns to the host until every answer is finished.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from cm3leon_jax.generation import constrained_decoding
from cm3leon_jax.generation.prompts import ANYTHING, IMAGE_CODE
from cm3leon_jax.generation.sampling import SamplingParams, draw, process_logits
from cm3leon_jax.models.cache import grown
from cm3leon_jax.models.transformer import Cache, Transformer
from cm3leon_jax.vocabulary import Vocabulary

# A cache of up to this many slots is as long as it will be from the first step on; a longer one grows so many times.
_SHORT_CACHE, _NUM_SIZES = 256, 4


class Task(NamedTuple):
    """B prompts, each of S streams; row b * S + s of the cache holds stream s of prompt b."""

    # First slot of each row's prompt, and the slot behind all prompts: there the answers begin.
    start: Int[Array, "R"]
    num_slots: Int[Array, ""]
    # Last token of each prompt.
    last: Int[Array, "B"]
    plan: Int[Array, "B M"]
    plan_image_positions: Int[Array, "B M"]
    plan_length: Int[Array, "B"]
    stop: Int[Array, "B"]
    num_spans: Int[Array, "B"]
    image_length: Int[Array, "B"]
    text_scale: Float[Array, "B"]
    image_scale: Float[Array, "B"]
    is_contrastive: Bool[Array, "B"] | None
    keys: Key[Array, "B"]


class Drawn(NamedTuple):
    """What has been drawn so far."""

    step: Int[Array, ""]
    token: Int[Array, "B"]
    image_position: Int[Array, "B"]
    cache: Cache
    output: Int[Array, "B M"]
    # Summed over the tokens that were drawn, which excludes those the plan gives.
    log_likelihood: Float[Array, "B"]
    num_drawn: Int[Array, "B"]
    image_tokens_left: Int[Array, "B"]
    spans_left: Int[Array, "B"]
    done: Bool[Array, "B"]


def decode(
    parameters: Any,
    task: Task,
    hidden: Float[Array, "R D"],
    cache: Cache,
    *,
    graph: nnx.GraphDef,
    vocabulary: Vocabulary,
    entries: frozenset[int],
    filters: SamplingParams,
    cache_sizes: tuple[int, ...],
) -> Drawn:
    """Draws a token a step until every answer is finished.

    Args:
      parameters: of an unstacked model.
      task: the prompts.
      hidden: the model's hidden state at each prompt's end.
      cache: holds the prompts, padded on the left so that all end at slot `num_slots`.
      graph: the unstacked model's structure.
      vocabulary: names the ids.
      entries: what kinds of entries, IMAGE_CODE and so on, the plans hold.
      filters: how a token is drawn.
      cache_sizes: slots that the cache has, first and after each growth; see `cache_sizes`.
    """
    model: Transformer = nnx.merge(graph, parameters)
    B, M = task.plan.shape
    S = len(task.start) // B
    ids = jnp.asarray(constrained_decoding.candidate_ids(entries, vocabulary))
    table = model.output_table
    if len(ids) < vocabulary.size:
        table = table[ids]

    def draw_next(state: Drawn, hidden: Float[Array, "R D"]) -> Drawn:
        expected = constrained_decoding.ConstraintState(
            plan=task.plan[:, state.step],
            room=task.plan_length - state.step,
            last=state.token,
            image_tokens_left=state.image_tokens_left,
            stop=task.stop,
            spans_left=state.spans_left,
            num_spans=task.num_spans,
            image_length=task.image_length,
        )
        logits = model.logits(hidden, table).reshape(B, S, -1)
        # Where only codes can be drawn, only codes have scores.
        legal = None if entries <= {IMAGE_CODE} else constrained_decoding.legal_tokens(ids, expected, vocabulary)
        scores = process_logits(logits, legal, task.text_scale, task.image_scale, task.is_contrastive, filters)
        keys = jax.vmap(jax.random.fold_in, (0, None))(task.keys, state.step)
        chosen = draw(keys, scores, greedy=filters.temperature == 0)
        forced = constrained_decoding.forced_tokens(expected, vocabulary)
        token = jnp.where(state.done, vocabulary.pad, jnp.where(forced >= 0, forced, ids[chosen])).astype(jnp.int32)
        counts = ~state.done & (forced < 0)
        conditional = logits[:, 0] if legal is None else jnp.where(legal, logits[:, 0], -jnp.inf)
        chosen_logits = jnp.take_along_axis(conditional, chosen[:, None], axis=-1)[:, 0]
        image_tokens_left = constrained_decoding.image_tokens_left_after(token, expected, vocabulary)
        spans_left = state.spans_left - (token == task.stop)
        is_free_code = (expected.plan == ANYTHING) & constrained_decoding.is_image_code(token, vocabulary)
        return state._replace(
            step=state.step + 1,
            token=token,
            image_position=jnp.where(
                is_free_code, task.image_length - image_tokens_left + 1, task.plan_image_positions[:, state.step]
            ),
            output=state.output.at[:, state.step].set(token),
            log_likelihood=state.log_likelihood
            + jnp.where(counts, chosen_logits - jax.nn.logsumexp(conditional, axis=-1), 0)
            # What is drawn from scores that are not finite means nothing, and its likelihood has to say so.
            + jnp.where(counts & ~jnp.isfinite(scores.max(axis=-1)), jnp.nan, 0),
            num_drawn=state.num_drawn + counts,
            image_tokens_left=image_tokens_left,
            spans_left=spans_left,
            done=state.done | (spans_left == 0) | (state.step + 1 >= task.plan_length),
        )

    def advance(state: Drawn) -> Drawn:
        index = task.num_slots + state.step - 1
        token, image_position = jnp.repeat(state.token, S)[:, None], jnp.repeat(state.image_position, S)[:, None]
        positions = (index - task.start)[:, None]
        hidden, cache = model.extend(token, positions, task.start[:, None], image_position, state.cache, index)
        return draw_next(state._replace(cache=cache), hidden[:, 0])

    def fits(state: Drawn, size: int) -> Bool[Array, ""]:
        return ~state.done.all() & (task.num_slots + state.step <= size)

    state = Drawn(
        step=jnp.zeros((), jnp.int32),
        token=task.last,
        image_position=jnp.zeros_like(task.last),
        cache=cache,
        output=jnp.full((B, M), vocabulary.pad, jnp.int32),
        log_likelihood=jnp.zeros(B),
        num_drawn=jnp.zeros(B, jnp.int32),
        image_tokens_left=jnp.zeros(B, jnp.int32),
        spans_left=task.num_spans,
        done=task.plan_length == 0,
    )
    state = draw_next(state, hidden)
    for size in cache_sizes:
        state = state._replace(cache=grown(state.cache, size))
        state = jax.lax.while_loop(partial(fits, size=size), advance, state)
    return state


def cache_sizes(num_prompt_slots: int, num_slots: int) -> tuple[int, ...]:
    """Slots that a cache has while it grows from the prompts to all that the answers need.

    A step reads all of the cache it is given: to read a part of a larger one, XLA would copy it in every step.
    """
    if num_slots <= _SHORT_CACHE:
        return (num_slots,)
    sizes = [num_slots * (n + 1) // _NUM_SIZES for n in range(_NUM_SIZES)]
    return tuple(size for size in sizes if size > num_prompt_slots)
