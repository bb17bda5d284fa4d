"""Answers to prompts: packs them into batches, reads them into the cache, and runs the compiled loop.

Where the mesh spans several processes, all of them ask for the same answers, and all of them get these. What goes into
a compiled function is then either NumPy's, which stands for the same array on every device, or was made on the mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.decode import Drawn, Task, cache_sizes, decode
from cm3leon_jax.generation.prefill import (
    CHUNK,
    Plan,
    PrefillRows,
    copy_moved_rows,
    copy_rows,
    plan_prefill,
    rounded_up,
)
from cm3leon_jax.generation.prompts import IMAGE_CODE, Prompt, PromptVariant
from cm3leon_jax.generation.sampling import SamplingParams, is_contrastive
from cm3leon_jax.generation.speculative import decode_speculatively
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.sharding import DECODING_RULES, cache_sharding, shardings
from cm3leon_jax.models.transformer import Cache, Transformer, abstract_model
from cm3leon_jax.vocabulary import Vocabulary

# Slots of a cache and entries of a plan come in few sizes from these on.
_LEAST_SLOTS, _LEAST_PLAN = 64, 16


@dataclass(frozen=True)
class Completion:
    """What was generated for a prompt."""

    tokens: list[int]
    # Mean log-likelihood of the drawn tokens, in nats, given the prompt and without guidance.
    score: float
    # Passes through the model that its batch took, beside reading the prompts.
    num_passes: int


class Decoder:
    """Generates on the devices of one mesh, with one set of parameters at a time."""

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        sequence_length: int,
        mesh: Mesh,
        image_length: int | None = None,
    ) -> None:
        self._vocabulary, self._sequence_length, self._mesh = vocabulary, sequence_length, mesh
        self._parameters: Any = None
        graph, abstract = abstract_model(config, vocabulary.size, sequence_length, image_length)

        def unstacked(parameters: nnx.State) -> Transformer:
            return nnx.merge(graph, parameters).unstacked()

        decoding_graph, abstract_decoding = nnx.split(nnx.eval_shape(unstacked, abstract))
        self._model: Transformer = nnx.merge(decoding_graph, abstract_decoding)
        self._unstacked = jax.jit(
            lambda parameters: nnx.state(unstacked(parameters)),
            out_shardings=shardings(abstract_decoding, mesh, DECODING_RULES),
        )

        def extend(
            parameters: nnx.State, cache: Cache, part: tuple[Array, Array, Array], start: Array, index: Array
        ) -> tuple[Float[Array, "R D"], Cache]:
            tokens, positions, image_positions = part
            starts = jnp.broadcast_to(start[:, None], tokens.shape)
            model: Transformer = nnx.merge(decoding_graph, parameters)
            hidden, cache = model.extend(tokens, positions, starts, image_positions, cache, index)
            return hidden[:, -1], cache

        # Caches are written in place.
        self._extend = jax.jit(extend, donate_argnums=1)
        self._decode = jax.jit(
            partial(decode, graph=decoding_graph, vocabulary=vocabulary),
            static_argnames=("entries", "filters", "cache_sizes"),
        )
        self._decode_speculatively = jax.jit(
            partial(decode_speculatively, graph=decoding_graph, vocabulary=vocabulary),
            static_argnames=("filters", "window"),
            donate_argnames="cache",
        )

        @partial(jax.jit, static_argnums=2)
        def copy(cache: Cache, rows: Array, num_slots: int) -> Cache:
            copied = copy_rows(cache, rows, num_slots)
            return jax.lax.with_sharding_constraint(copied, cache_sharding(len(rows), mesh))

        @partial(jax.jit, static_argnums=3)
        def copy_moved(cache: Cache, rows: Array, shift: Array, num_slots: int) -> Cache:
            copied = copy_moved_rows(cache, rows, shift, num_slots)
            return jax.lax.with_sharding_constraint(copied, cache_sharding(len(rows), mesh))

        @partial(jax.jit, static_argnums=(0, 1, 2))
        def empty(num_rows: int, num_slots: int, dtype: str) -> Cache:
            cache = self._model.empty_cache(num_rows, num_slots, dtype)
            return jax.lax.with_sharding_constraint(cache, cache_sharding(num_rows, mesh))

        self._copy_rows, self._copy_moved_rows, self._empty_cache = copy, copy_moved, empty

        everywhere = NamedSharding(mesh, PartitionSpec())

        @partial(jax.jit, out_shardings=everywhere)
        def keys(seed_key: Array, indices: Array) -> Array:
            return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.wrap_key_data(seed_key), indices)

        self._keys = keys
        self._take = jax.jit(lambda array, rows: array[rows])
        self._everywhere = jax.jit(lambda arrays: arrays, out_shardings=everywhere)

    def load(self, parameters: nnx.State | None) -> None:
        """Takes a copy of a model's parameters, laid out for decoding; None lets go of the copy there is."""
        self._parameters = None if parameters is None else self._unstacked(parameters)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        indices: Sequence[int] | None = None,
        contrastive: Sequence[bool] | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Answers, in the order of the prompts.

        The randomness of an answer depends on the seed and on its index (its place among the prompts, unless
        `indices` are given), not on the prompts that happen to be decoded beside it.

        Args:
          prompts: what to answer; equal ones are read once.
          sampling: how.
          indices: numbers that tell equal prompts apart.
          contrastive: which prompts to answer by CD-K; as `sampling.method` says where this is not given.
          advance: told after each batch how many answers it gave.
        """
        self.check_fits_sequence(prompts)
        indices = range(len(prompts)) if indices is None else indices
        if contrastive is None:
            contrastive = [is_contrastive(index, sampling.method) for index in indices]
        answers: list[Completion] = []
        for start in range(0, len(prompts), sampling.batch_size):
            chunk = slice(start, start + sampling.batch_size)
            found = self._batch(prompts[chunk], sampling, indices[chunk], contrastive[chunk])
            answers += found
            if advance is not None:
                advance(len(found))
        return answers

    def check_fits_sequence(self, prompts: Sequence[Prompt]) -> None:
        """Every prompt and its longest answer must fit the positions that the model was trained with."""
        for prompt in prompts:
            length = max(len(stream.tokens) for stream in prompt.variants)
            if length + len(prompt.plan) > self._sequence_length:
                is_image = all(entry == IMAGE_CODE for entry in prompt.plan)
                fix = "shorten the prompt" + ("" if is_image else " or lower config.sampling.max_text_tokens")
                raise UserError(
                    f"a prompt of {length} tokens and an answer of up to {len(prompt.plan)} do not fit the "
                    f"model's {self._sequence_length} positions: {fix}"
                )

    def _batch(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, indices: Sequence[int], contrastive: Sequence[bool]
    ) -> list[Completion]:
        # A short last batch is filled up with its first prompt: no new program for it.
        spare = sampling.batch_size - len(prompts)
        rows = [*prompts, *[prompts[0]] * spare]
        by_contrast = [*contrastive, *[False] * spare]
        scales = [_guidance_scales(prompt, sampling) for prompt in rows]
        num_streams = max(
            len(prompt.variants) if contrasts or scale != (1.0, 1.0) else 1
            for prompt, contrasts, scale in zip(rows, by_contrast, scales, strict=True)
        )
        groups = [_streams(prompt, num_streams) for prompt in rows]
        reading = plan_prefill(groups)
        hidden, cache = self._read(reading, sampling.cache_dtype)

        entries = frozenset(entry for prompt in rows for entry in prompt.plan if entry < 0)
        lengths = {len(prompt.plan) for prompt in rows}
        only_images = all(entry == IMAGE_CODE for prompt in rows for entry in prompt.plan) and len(lengths) == 1
        speculates = sampling.speculative_window > 0 and only_images
        # No more guesses than the image has codes.
        window = max(2, min(sampling.speculative_window, *lengths)) if speculates else 0
        num_entries = max(lengths) if speculates else rounded_up(max(lengths), _LEAST_PLAN)
        task = self._task(rows, reading, num_entries, scales, sampling.seed, [*indices, *[0] * spare])
        if num_streams > 1 and any(by_contrast):
            task = task._replace(is_contrastive=_for_all(by_contrast, np.bool_))
        room = rounded_up(reading.num_slots + num_entries + window, _LEAST_SLOTS)
        sizes = (room,) if speculates else cache_sizes(reading.num_slots, room)
        cache = self._copy_rows(cache, reading.rest_row, sizes[0])
        hidden, filters = self._take(hidden, reading.rest_row), SamplingParams.of(sampling)
        if speculates:
            drawn = self._decode_speculatively(self._parameters, task, hidden, cache, filters=filters, window=window)
        else:
            drawn = self._decode(
                self._parameters, task, hidden, cache, entries=entries, filters=filters, cache_sizes=sizes
            )
        return self._answers(prompts, drawn)

    def _task(
        self,
        prompts: Sequence[Prompt],
        reading: Plan,
        num_entries: int,
        scales: Sequence[tuple[float, float]],
        seed: int,
        indices: Sequence[int],
    ) -> Task:
        plan = np.full((len(prompts), num_entries), self._vocabulary.pad, np.int32)
        plan_image_positions = np.zeros_like(plan)
        for row, prompt in enumerate(prompts):
            plan[row, : len(prompt.plan)], plan_image_positions[row, : len(prompt.plan)] = (
                prompt.plan,
                prompt.plan_image_positions,
            )

        return Task(
            start=_for_all(reading.num_slots - reading.length[reading.rest_row]),
            num_slots=_for_all(reading.num_slots),
            last=_for_all([prompt.variants[0].tokens[-1] for prompt in prompts]),
            plan=_for_all(plan),
            plan_image_positions=_for_all(plan_image_positions),
            plan_length=_for_all([len(prompt.plan) for prompt in prompts]),
            stop=_for_all([prompt.stop for prompt in prompts]),
            num_spans=_for_all([prompt.num_spans for prompt in prompts]),
            image_length=_for_all([prompt.image_length for prompt in prompts]),
            text_scale=_for_all([text for text, _ in scales], np.float32),
            image_scale=_for_all([image for _, image in scales], np.float32),
            is_contrastive=None,
            keys=self._keys(np.asarray(jax.random.key_data(jax.random.key(seed))), _for_all(indices)),
        )

    def _read(self, plan: Plan, dtype: str) -> tuple[Float[Array, "U D"], Cache]:
        """Each different prompt's last hidden state, and a cache that holds them all."""
        if plan.prefixes is None:
            cache = self._empty_cache(len(plan.rests.tokens), plan.num_slots, dtype)
        else:
            width = plan.prefixes.tokens.shape[1]
            lengths = (plan.prefixes.positions >= 0).sum(axis=1)
            prefixes = self._empty_cache(len(plan.prefixes.tokens), width, dtype)
            _, prefixes = self._read_chunks(plan.prefixes, width - lengths, prefixes, width)
            # Behind its prefix, a row has what is its own, up to the last slot.
            shift = (plan.num_slots - (plan.length - plan.prefix_length)) - width
            cache = self._copy_moved_rows(prefixes, plan.prefix_row, shift, plan.num_slots)
        return self._read_chunks(plan.rests, plan.num_slots - plan.length, cache, plan.num_slots)

    def _read_chunks(
        self, reading: PrefillRows, start: Int[np.ndarray, "R"], cache: Cache, num_slots: int
    ) -> tuple[Float[Array, "R D"], Cache]:
        width = reading.tokens.shape[1]
        for first in range(0, width, CHUNK):
            columns = slice(first, first + CHUNK)
            part = (reading.tokens[:, columns], reading.positions[:, columns], reading.image_positions[:, columns])
            index = np.int32(num_slots - width + first)
            hidden, cache = self._extend(self._parameters, cache, part, np.asarray(start, np.int32), index)
        return hidden, cache

    def _answers(self, prompts: Sequence[Prompt], drawn: Drawn) -> list[Completion]:
        output, counts, likelihood, num_passes = jax.device_get(
            self._everywhere((drawn.output, drawn.num_drawn, drawn.log_likelihood, drawn.step))
        )
        return [
            Completion(
                _trimmed(prompt, output[row].tolist()), float(likelihood[row] / max(1, counts[row])), int(num_passes)
            )
            for row, prompt in enumerate(prompts)
        ]


def _for_all(values: Any, dtype: type = np.int32) -> Any:
    """An array that goes into a compiled function; NumPy's, since JAX's would lie on one device of this process."""
    return np.asarray(values, dtype)


def _guidance_scales(prompt: Prompt, sampling: SamplingConfig) -> tuple[float, float]:
    """Weights towards the text and towards the image; 1 changes nothing."""
    if len(prompt.variants) == 3:
        return sampling.edit_guidance, sampling.edit_image_guidance
    return (sampling.guidance if len(prompt.variants) == 2 else 1.0), 1.0


def _streams(prompt: Prompt, number: int) -> list[PromptVariant]:
    """As many streams for every prompt; a repeated last one adds nothing, whatever the weights."""
    variants = prompt.variants[:number]
    return [*variants, *[variants[-1]] * (number - len(variants))]


def _trimmed(prompt: Prompt, output: list[int]) -> list[int]:
    """The answer without the mark that ended it."""
    answer = output[: len(prompt.plan)]
    ends = [index for index, token in enumerate(answer) if token == prompt.stop]
    return answer[: ends[prompt.num_spans - 1]] if len(ends) >= prompt.num_spans else answer
