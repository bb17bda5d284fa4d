"""Cached decoding of a batch of prompts in one compiled loop, with guidance and only legal tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from cm3leon_jax.config import SamplingConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.prompts import IMAGE_CODE, TEXT_TOKEN, Prompt
from cm3leon_jax.generation.sampling import guided_logits, sample
from cm3leon_jax.model.transformer import Cache, Transformer
from cm3leon_jax.vocabulary import NUM_SPECIAL, Vocabulary

# Lengths are rounded up to these multiples, so that prompts of all lengths share a few compiled programs.
_LENGTH_MULTIPLE = 16


@dataclass(frozen=True)
class Answer:
    """What was generated for a prompt."""

    tokens: list[int]
    # Mean log-likelihood of the drawn tokens, in nats, given the prompt and without guidance.
    score: float


class _Prompts(NamedTuple):
    """A batch of prompts as arrays; rows are padded on the left so that all answers begin at the same place."""

    tokens: Int[Array, "R P"]
    places: Int[Array, "R P"]
    start: Int[Array, "R"]
    plan: Int[Array, "B M"]
    plan_places: Int[Array, "B M"]
    stop: Int[Array, "B"]
    guidance: Float[Array, "B"]
    keys: Key[Array, "B"]


class _State(NamedTuple):
    step: Int[Array, ""]
    token: Int[Array, "B"]
    cache: Cache | None
    output: Int[Array, "B M"]
    log_likelihood: Float[Array, "B"]
    num_drawn: Int[Array, "B"]
    done: Bool[Array, "B"]


def legal_tokens(plan: Int[Array, "B"], stop: Int[Array, "B"], vocabulary: Vocabulary) -> Bool[Array, "B V"]:
    """Which ids each row may draw: a code where its plan says so, text or the stop mark, or one given mark."""
    ids = jnp.arange(vocabulary.size)
    first = vocabulary.first_image_code
    codes = (ids >= first) & (ids < first + vocabulary.num_image_codes)
    text = (ids >= NUM_SPECIAL) & (ids < first)
    kind = plan[:, None]
    free_text = (kind == TEXT_TOKEN) & (text | (ids == stop[:, None]))
    return jnp.where(kind == IMAGE_CODE, codes, free_text | (ids == kind))


class Decoder:
    """Generates from one set of parameters."""

    def __init__(self, graph: nnx.GraphDef, parameters: Any, vocabulary: Vocabulary, sequence_length: int) -> None:
        self.parameters = parameters
        self._vocabulary, self._sequence_length = vocabulary, sequence_length
        self._decode = jax.jit(
            partial(_decode, graph=graph, vocabulary=vocabulary),
            static_argnames=("num_streams", "temperature", "top_p"),
        )

    def __call__(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, indices: Sequence[int] | None = None
    ) -> list[Answer]:
        """Answers, in the order of the prompts.

        The randomness of an answer depends on the seed and on its index (its place among the prompts, unless
        `indices` are given), not on the prompts that happen to be decoded beside it.
        """
        self.refuse_too_long(prompts)
        indices = range(len(prompts)) if indices is None else indices
        answers: list[Answer] = []
        for start in range(0, len(prompts), sampling.batch_size):
            chunk = slice(start, start + sampling.batch_size)
            answers += self._batch(prompts[chunk], sampling, indices[chunk])
        return answers

    def refuse_too_long(self, prompts: Sequence[Prompt]) -> None:
        """Every prompt and its longest answer must fit the positions that the model was trained with."""
        for prompt in prompts:
            if len(prompt.tokens) + len(prompt.plan) > self._sequence_length:
                raise UserError(
                    f"a prompt of {len(prompt.tokens)} tokens and an answer of up to {len(prompt.plan)} do not fit the "
                    f"model's {self._sequence_length} positions; shorten the prompt or config.sampling.max_text_tokens"
                )

    def _batch(self, prompts: Sequence[Prompt], sampling: SamplingConfig, indices: Sequence[int]) -> list[Answer]:
        guided = sampling.guidance != 1 and any(prompt.unconditional for prompt in prompts)
        arrays = self._arrays(prompts, sampling, indices, guided)
        state = self._decode(
            self.parameters,
            arrays,
            num_streams=2 if guided else 1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        output, drawn, likelihood = jax.device_get((state.output, state.num_drawn, state.log_likelihood))
        return [
            Answer(self._trimmed(prompt, output[row].tolist()), float(likelihood[row] / max(1, drawn[row])))
            for row, prompt in enumerate(prompts)
        ]

    def _trimmed(self, prompt: Prompt, output: list[int]) -> list[int]:
        answer = output[: len(prompt.plan)]
        return answer[: answer.index(prompt.stop)] if prompt.stop in answer else answer

    def _arrays(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, indices: Sequence[int], guided: bool
    ) -> _Prompts:
        # A short last batch is filled up with its first prompt: no new program for it.
        rows = [*prompts, *[prompts[0]] * (sampling.batch_size - len(prompts))]
        streams = [(prompt.tokens, prompt.places) for prompt in rows]
        if guided:
            # An unconditional prompt holds no codes, and so no places.
            streams += [
                (p.unconditional, (0,) * len(p.unconditional)) if p.unconditional else (p.tokens, p.places)
                for p in rows
            ]
        width = _rounded(max(len(ids) for ids, _ in streams))
        length = _rounded(max(len(prompt.plan) for prompt in rows))
        tokens = np.full((len(streams), width), self._vocabulary.pad, np.int32)
        places = np.zeros_like(tokens)
        for row, (ids, ids_places) in enumerate(streams):
            tokens[row, width - len(ids) :], places[row, width - len(ids) :] = ids, ids_places
        plan = np.full((len(rows), length), self._vocabulary.pad, np.int32)
        plan_places = np.zeros_like(plan)
        for row, prompt in enumerate(rows):
            plan[row, : len(prompt.plan)], plan_places[row, : len(prompt.plan)] = prompt.plan, prompt.plan_places
        seed = jax.random.key(sampling.seed)
        all_indices = [*indices, *[0] * (len(rows) - len(indices))]
        return _Prompts(
            tokens=jnp.asarray(tokens),
            places=jnp.asarray(places),
            start=jnp.asarray([width - len(ids) for ids, _ in streams], jnp.int32),
            plan=jnp.asarray(plan),
            plan_places=jnp.asarray(plan_places),
            stop=jnp.asarray([prompt.stop for prompt in rows], jnp.int32),
            guidance=jnp.asarray([sampling.guidance if p.unconditional else 1.0 for p in rows], jnp.float32),
            keys=jax.vmap(jax.random.fold_in, (None, 0))(seed, jnp.asarray(all_indices)),
        )


def _rounded(length: int) -> int:
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


def _decode(
    parameters: Any,
    prompts: _Prompts,
    *,
    graph: nnx.GraphDef,
    vocabulary: Vocabulary,
    num_streams: int,
    temperature: float,
    top_p: float,
) -> _State:
    """The compiled loop: reads the prompts at once, then draws a token a step until every row is done."""
    model: Transformer = nnx.merge(graph, parameters)
    (R, P), (B, M) = prompts.tokens.shape, prompts.plan.shape

    def next_logits(hidden: Float[Array, "R D"]) -> tuple[Float[Array, "B V"], Float[Array, "B V"]]:
        """Guided logits, and the conditional ones."""
        logits = model.logits(hidden)
        if num_streams == 1:
            return logits, logits
        conditional, unconditional = logits[:B], logits[B:]
        return guided_logits(conditional, unconditional, prompts.guidance[:, None]), conditional

    def draw(state: _State, hidden: Float[Array, "R D"]) -> _State:
        guided, conditional = next_logits(hidden)
        plan = prompts.plan[:, state.step]
        legal = legal_tokens(plan, prompts.stop, vocabulary)
        keys = jax.vmap(jax.random.fold_in, (0, None))(prompts.keys, state.step)
        token = sample(keys, jnp.where(legal, guided, -jnp.inf), temperature, top_p)
        token = jnp.where(state.done, vocabulary.pad, token).astype(jnp.int32)
        # A token that was given has no likelihood of its own.
        counts = ~state.done & (plan < 0)
        legal_logits = jnp.where(legal, conditional, -jnp.inf)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(legal_logits), token[:, None], axis=-1)[:, 0]
        return state._replace(
            step=state.step + 1,
            token=token,
            output=state.output.at[:, state.step].set(token),
            log_likelihood=state.log_likelihood + jnp.where(counts, chosen, 0),
            num_drawn=state.num_drawn + counts,
            done=state.done | (token == prompts.stop) | (state.step + 1 >= _plan_lengths(prompts.plan, vocabulary)),
        )

    def advance(state: _State) -> _State:
        index = P + state.step - 1
        token = jnp.tile(state.token, num_streams)[:, None]
        positions = (index - prompts.start)[:, None]
        places = jnp.tile(prompts.plan_places[:, state.step - 1], num_streams)[:, None]
        hidden, cache = model(token, positions, prompts.start[:, None], places, state.cache, index)
        return draw(state._replace(cache=cache), hidden[:, 0])

    positions = jnp.maximum(jnp.arange(P) - prompts.start[:, None], 0)
    # A padding token in front of a prompt sees itself alone.
    starts = jnp.where(jnp.arange(P) < prompts.start[:, None], jnp.arange(P), prompts.start[:, None])
    hidden, cache = model(prompts.tokens, positions, starts, prompts.places, model.empty_cache(R, P + M), 0)
    state = _State(
        step=jnp.zeros((), jnp.int32),
        token=jnp.zeros(B, jnp.int32),
        cache=cache,
        output=jnp.full((B, M), vocabulary.pad, jnp.int32),
        log_likelihood=jnp.zeros(B),
        num_drawn=jnp.zeros(B, jnp.int32),
        done=jnp.zeros(B, bool),
    )
    state = draw(state, hidden[:, -1])
    return jax.lax.while_loop(lambda s: ~s.done.all(), advance, state)


def _plan_lengths(plan: Int[Array, "B M"], vocabulary: Vocabulary) -> Int[Array, "B"]:
    return (plan != vocabulary.pad).sum(axis=1)
