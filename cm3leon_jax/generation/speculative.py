"""Speculative Jacobi decoding of images: several codes guessed, checked in one pass, and redrawn where they fail.

Teng et al., arXiv 2410.01699. A pass over W tokens reads the same weights and cache as a pass over one, so every guess
that holds is nearly free. A guess drawn from q is kept with probability min(1, p / q) where p is what the model gives
now, and else redrawn from what p has over q: answers have the distribution of drawing code by code, and with
temperature 0 they are the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cm3leon_jax.generation import constrained_decoding
from cm3leon_jax.generation.decode import Drawn, Task
from cm3leon_jax.generation.prompts import IMAGE_CODE
from cm3leon_jax.generation.sampling import SamplingParams, draw, process_logits
from cm3leon_jax.models.transformer import Cache, Transformer
from cm3leon_jax.vocabulary import Vocabulary


class _State(NamedTuple):
    num_passes: Int[Array, ""]
    # Codes each row has, and the codes themselves, as indices into the codebook.
    num_codes: Int[Array, "B"]
    codes: Int[Array, "B room"]
    # Guesses for the codes that follow, and the log-probabilities they were drawn from.
    guesses: Int[Array, "B G"]
    guess_log: Float[Array, "B G K"]
    cache: Cache
    log_likelihood: Float[Array, "B"]


def decode_speculatively(
    parameters: Any,
    task: Task,
    hidden: Float[Array, "R D"],
    cache: Cache,
    *,
    graph: nnx.GraphDef,
    vocabulary: Vocabulary,
    filters: SamplingParams,
    window: int,
) -> Drawn:
    """As `decode.decode`, for plans of image codes alone: `window` tokens a pass. The step counts passes."""
    model: Transformer = nnx.merge(graph, parameters)
    B, M = task.plan.shape
    S, W, greedy = len(task.start) // B, window, filters.temperature == 0
    ids = jnp.asarray(constrained_decoding.candidate_ids(frozenset({IMAGE_CODE}), vocabulary))
    table = model.output_table[ids]
    rows = jnp.arange(B)

    def distributions(hidden: Float[Array, "R n D"]) -> tuple[Float[Array, "B n K"], Float[Array, "B n K"]]:
        """Log-probabilities to draw from at n places, and the conditional ones."""
        n = hidden.shape[1]
        logits = model.logits(hidden, table).reshape(B, S, n, -1)
        flat = jnp.swapaxes(logits, 1, 2).reshape(B * n, S, -1)
        text_scale, image_scale = jnp.repeat(task.text_scale, n), jnp.repeat(task.image_scale, n)
        is_contrastive = None if task.is_contrastive is None else jnp.repeat(task.is_contrastive, n)
        scores = process_logits(flat, None, text_scale, image_scale, is_contrastive, filters)
        # As in `decode.decode`: what is drawn from scores that are not finite has no likelihood.
        unsound = jnp.where(jnp.isfinite(scores.max(axis=-1)), 0, jnp.nan).reshape(B, n, 1)
        if greedy:
            scores = jnp.where(jax.nn.one_hot(scores.argmax(axis=-1), scores.shape[-1], dtype=bool), 0.0, -jnp.inf)
        return (
            jax.nn.log_softmax(scores).reshape(B, n, -1),
            jax.nn.log_softmax(logits[:, 0]) + unsound,
        )

    def draw_all(keys: Array, log_p: Float[Array, "B n K"]) -> Int[Array, "B n"]:
        n = log_p.shape[1]
        row_keys = jax.vmap(lambda key: jax.random.split(key, n))(keys).reshape(-1)
        return draw(row_keys, log_p.reshape(B * n, -1), greedy).reshape(B, n)

    def guess(keys: Array, log_p: Float[Array, "B n K"], first: Int[Array, "B"]) -> tuple[Array, Array]:
        """Guesses for the places from `first` on; behind the last known distribution, from that one again."""
        image_positions = jnp.minimum(first[:, None] + jnp.arange(W - 1), log_p.shape[1] - 1)
        guess_log = log_p[rows[:, None], image_positions]
        return draw_all(keys, guess_log), guess_log

    def check(state: _State) -> _State:
        keys = jax.vmap(jax.random.fold_in, (0, None))(task.keys, state.num_passes)
        accept_keys, redraw_keys, guess_keys = jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0)
        # The newest code is not in the cache yet; it goes in with the guesses behind it.
        newest = state.num_codes - 1
        inputs = jnp.concatenate([state.codes[rows, newest][:, None], state.guesses], axis=1)
        at = jnp.minimum(newest[:, None] + jnp.arange(W), M - 1)
        index = jnp.repeat(task.num_slots + newest, S)
        positions = (index - task.start)[:, None] + jnp.arange(W)
        # Guesses behind the end of the image have no position; they leave no trace.
        positions = jnp.where(jnp.repeat(newest[:, None] + jnp.arange(W) < M, S, axis=0), positions, -1)
        hidden, cache = model.extend(
            jnp.repeat(ids[inputs], S, axis=0),
            positions,
            jnp.repeat(task.start[:, None], W, axis=1),
            jnp.repeat(task.plan_image_positions[rows[:, None], at], S, axis=0),
            state.cache,
            index,
        )
        log_p, conditional = distributions(hidden)

        chosen = state.guesses[..., None]
        ratio = jnp.take_along_axis(log_p[:, :-1] - state.guess_log, chosen, axis=-1)[..., 0]
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (W - 1,)))(accept_keys)
        held = jnp.cumprod(jnp.log(uniform) < ratio, axis=1).sum(axis=1)
        # The first place whose guess failed, or, if all held, the place behind them.
        log_here = log_p[rows, held]
        spare = jnp.exp(log_here) - jnp.exp(state.guess_log[rows, jnp.minimum(held, W - 2)])
        failed = (held < W - 1)[:, None] & (spare > 0).any(axis=-1, keepdims=True)
        redrawn = draw(redraw_keys, jnp.where(failed, jnp.log(jnp.maximum(spare, 0)), log_here), greedy)

        new = jnp.concatenate([state.guesses, jnp.zeros((B, 1), jnp.int32)], axis=1).at[rows, held].set(redrawn)
        is_new = (jnp.arange(W) <= held[:, None]) & (state.num_codes[:, None] + jnp.arange(W) < M)
        likelihoods = jnp.take_along_axis(conditional, new[..., None], axis=-1)[..., 0]
        guesses, guess_log = guess(guess_keys, log_p, held + 1)
        return _State(
            num_passes=state.num_passes + 1,
            num_codes=jnp.minimum(state.num_codes + held + 1, M),
            codes=jax.vmap(lambda row, part, at: jax.lax.dynamic_update_slice(row, part, (at,)))(
                state.codes, new, state.num_codes
            ),
            guesses=guesses,
            guess_log=guess_log,
            cache=cache,
            log_likelihood=state.log_likelihood + jnp.where(is_new, likelihoods, 0).sum(axis=1),
        )

    first_log, conditional = distributions(hidden[:, None])
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(jax.vmap(jax.random.fold_in, (0, None))(task.keys, 0))
    first = draw_all(keys[:, 0], first_log)
    guesses, guess_log = guess(keys[:, 1], first_log, jnp.zeros(B, jnp.int32))
    state = _State(
        num_passes=jnp.ones((), jnp.int32),
        num_codes=jnp.ones(B, jnp.int32),
        codes=jnp.zeros((B, M + W), jnp.int32).at[:, 0].set(first[:, 0]),
        guesses=guesses,
        guess_log=guess_log,
        cache=cache,
        log_likelihood=jnp.take_along_axis(conditional[:, 0], first, axis=-1)[:, 0],
    )

    def is_unfinished(state: _State) -> Bool[Array, ""]:
        return (state.num_codes < M).any()

    state = jax.lax.while_loop(is_unfinished, check, state)
    nothing = jnp.zeros(B, jnp.int32)
    return Drawn(
        step=state.num_passes,
        token=nothing,
        image_position=nothing,
        cache=state.cache,
        output=ids[state.codes[:, :M]],
        log_likelihood=state.log_likelihood,
        num_drawn=state.num_codes,
        image_tokens_left=nothing,
        spans_left=nothing,
        done=state.num_codes >= M,
    )
