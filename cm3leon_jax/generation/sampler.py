"""Completes prompts: packs them into batches, prefills the cache, and runs the compiled loop.

Where the mesh spans several processes, all give the same prompts and get the completions. What goes into a compiled
function is either NumPy's, which stands for the same array on every device, or was made on the mesh.
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
from cm3leon_jax.generation.decode import DecodedTokens, PromptBatch, cache_sizes, decode
from cm3leon_jax.generation.prefill import CHUNK, PrefillPlan, PrefillRows, copy_rows, plan_prefill, rounded_up
from cm3leon_jax.generation.prompt import IMAGE_CODE, Prompt, PromptVariant
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
    """The tokens generated for a prompt."""

    tokens: list[int]
    # Mean log-likelihood of the sampled tokens, in nats, given the prompt and without guidance.
    mean_logprob: float
    # Passes through the model that its batch took, prefill excluded.
    num_passes: int


class Sampler:
    """Completes prompts on the devices of one mesh, with one set of parameters at a time."""

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        sequence_length: int,
        mesh: Mesh,
        image_length: int | None = None,
    ) -> None:
        self.sequence_length = sequence_length
        self._vocabulary, self._mesh, self._parameters = vocabulary, mesh, None
        graph, abstract = abstract_model(config, vocabulary.size, sequence_length, image_length)

        def unstacked(parameters: nnx.State) -> Transformer:
            return nnx.merge(graph, parameters).unstacked()

        self._graph, abstract_unstacked = nnx.split(nnx.eval_shape(unstacked, abstract))
        self._model: Transformer = nnx.merge(self._graph, abstract_unstacked)
        self._unstack = jax.jit(
            lambda parameters: nnx.state(unstacked(parameters)),
            out_shardings=shardings(abstract_unstacked, mesh, DECODING_RULES),
        )
        # Caches are written in place.
        self._extend = jax.jit(self._extended, donate_argnums=1)
        self._copy_rows = jax.jit(self._copied_rows, static_argnums=3)
        self._empty_cache = jax.jit(self._zeros, static_argnums=(0, 1, 2))
        self._decode = jax.jit(
            partial(decode, graph=self._graph, vocabulary=vocabulary),
            static_argnames=("kinds", "params", "cache_sizes"),
        )
        self._decode_speculatively = jax.jit(
            partial(decode_speculatively, graph=self._graph, vocabulary=vocabulary),
            static_argnames=("params", "window"),
            donate_argnames="cache",
        )
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._keys = jax.jit(_row_keys, out_shardings=everywhere)
        self._take = jax.jit(lambda array, rows: array[rows])
        self._replicate = jax.jit(lambda arrays: arrays, out_shardings=everywhere)

    def load(self, parameters: nnx.State | None) -> None:
        """Takes a copy of a model's parameters, laid out for decoding; None frees the copy there is."""
        self._parameters = None if parameters is None else self._unstack(parameters)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        indices: Sequence[int] | None = None,
        contrastive: Sequence[bool] | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Completes prompts, in their order; `advance` is called after each batch with its number of completions.

        The randomness of a completion depends on the seed and on its index (its number among the prompts, unless
        `indices` are given), not on the prompts that happen to be in its batch. `contrastive` says which prompts to
        complete by CD-K, by default `sampling.method`.
        """
        self.check_fits_sequence(prompts)
        indices = range(len(prompts)) if indices is None else indices
        if contrastive is None:
            contrastive = [is_contrastive(index, sampling.method) for index in indices]
        completions: list[Completion] = []
        for start in range(0, len(prompts), sampling.batch_size):
            chunk = slice(start, start + sampling.batch_size)
            found = self._complete_batch(prompts[chunk], sampling, indices[chunk], contrastive[chunk])
            completions += found
            if advance is not None:
                advance(len(found))
        return completions

    def check_fits_sequence(self, prompts: Sequence[Prompt]) -> None:
        """Every prompt and its longest completion must fit the positions that the model was trained with."""
        for prompt in prompts:
            length = max(len(variant.tokens) for variant in prompt.variants)
            if length + len(prompt.plan) > self.sequence_length:
                is_image = all(entry == IMAGE_CODE for entry in prompt.plan)
                fix = "shorten the prompt" + ("" if is_image else " or lower config.sampling.max_text_tokens")
                raise UserError(
                    f"a prompt of {length} tokens and a completion of up to {len(prompt.plan)} do not fit the "
                    f"model's {self.sequence_length} positions: {fix}"
                )

    def _complete_batch(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, indices: Sequence[int], contrastive: Sequence[bool]
    ) -> list[Completion]:
        # A short last batch is filled up with its first prompt: no new program for it.
        spare = sampling.batch_size - len(prompts)
        rows, indices = [*prompts, *[prompts[0]] * spare], [*indices, *[0] * spare]
        contrastive = [*contrastive, *[False] * spare]
        num_variants = max(
            len(prompt.variants) if contrasts or _guidance_scales(prompt, sampling) != (1.0, 1.0) else 1
            for prompt, contrasts in zip(rows, contrastive, strict=True)
        )
        plan = plan_prefill([_first_variants(prompt, num_variants) for prompt in rows])
        hidden, cache = self._prefill(plan, sampling.cache_dtype)
        hidden = self._take(hidden, plan.suffix_row)

        window, longest = _window(rows, sampling), max(len(prompt.plan) for prompt in rows)
        num_entries = longest if window else rounded_up(longest, _LEAST_PLAN)
        batch = self._prompt_batch(rows, plan, num_entries, sampling, indices, contrastive)
        num_slots = rounded_up(plan.num_slots + num_entries + window, _LEAST_SLOTS)
        sizes = (num_slots,) if window else cache_sizes(plan.num_slots, num_slots)
        cache = self._copy_rows(cache, plan.suffix_row, None, sizes[0])
        run: Callable[..., DecodedTokens]
        if window:
            run = partial(self._decode_speculatively, window=window)
        else:
            kinds = frozenset(entry for prompt in rows for entry in prompt.plan if entry < 0)
            run = partial(self._decode, kinds=kinds, cache_sizes=sizes)
        decoded = run(self._parameters, batch, hidden, cache, params=SamplingParams.of(sampling))
        return self._completions(prompts, decoded)

    def _prompt_batch(
        self,
        prompts: Sequence[Prompt],
        plan: PrefillPlan,
        num_entries: int,
        sampling: SamplingConfig,
        indices: Sequence[int],
        contrastive: Sequence[bool],
    ) -> PromptBatch:
        """The batch, of NumPy's arrays but for the keys (see above)."""
        entries = np.full((len(prompts), num_entries), self._vocabulary.pad, np.int32)
        image_positions = np.zeros_like(entries)
        for row, prompt in enumerate(prompts):
            entries[row, : len(prompt.plan)] = prompt.plan
            image_positions[row, : len(prompt.plan)] = prompt.plan_image_positions
        text_scale, image_scale = np.array([_guidance_scales(prompt, sampling) for prompt in prompts], np.float32).T
        has_contrast = len(plan.suffix_row) > len(prompts) and any(contrastive)
        seed_key = np.asarray(jax.random.key_data(jax.random.key(sampling.seed)))

        def each(value: Callable[[Prompt], int]) -> Int[np.ndarray, "B"]:
            return np.array([value(prompt) for prompt in prompts], np.int32)

        arrays: dict[str, Any] = {
            "start": plan.num_slots - plan.length[plan.suffix_row],
            "num_slots": np.asarray(plan.num_slots, np.int32),
            "last": each(lambda prompt: prompt.variants[0].tokens[-1]),
            "plan": entries,
            "plan_image_positions": image_positions,
            "plan_length": each(lambda prompt: len(prompt.plan)),
            "stop": each(lambda prompt: prompt.stop),
            "num_spans": each(lambda prompt: prompt.num_spans),
            "image_length": each(lambda prompt: prompt.image_length),
            "text_scale": text_scale,
            "image_scale": image_scale,
            "is_contrastive": np.array(contrastive) if has_contrast else None,
            "keys": self._keys(seed_key, np.array(indices, np.int32)),
        }
        return PromptBatch(**arrays)

    def _prefill(self, plan: PrefillPlan, dtype: str) -> tuple[Float[Array, "U D"], Cache]:
        """The last hidden state of each distinct variant, and a cache that holds them all."""
        if plan.prefixes is None:
            cache = self._empty_cache(len(plan.suffixes.tokens), plan.num_slots, dtype)
        else:
            width = plan.prefixes.tokens.shape[1]
            lengths = (plan.prefixes.positions >= 0).sum(axis=1)
            prefixes = self._empty_cache(len(plan.prefixes.tokens), width, dtype)
            _, prefixes = self._prefill_rows(plan.prefixes, width - lengths, prefixes, width)
            # After its prefix, a row has its suffix, up to the last slot.
            shift = (plan.num_slots - (plan.length - plan.prefix_length)) - width
            cache = self._copy_rows(prefixes, plan.prefix_row, shift, plan.num_slots)
        return self._prefill_rows(plan.suffixes, plan.num_slots - plan.length, cache, plan.num_slots)

    def _prefill_rows(
        self, rows: PrefillRows, start: Int[np.ndarray, "R"], cache: Cache, num_slots: int
    ) -> tuple[Float[Array, "R D"], Cache]:
        width = rows.tokens.shape[1]
        for first in range(0, width, CHUNK):
            columns = slice(first, first + CHUNK)
            part = (rows.tokens[:, columns], rows.positions[:, columns], rows.image_positions[:, columns])
            index = np.int32(num_slots - width + first)
            hidden, cache = self._extend(self._parameters, cache, part, np.asarray(start, np.int32), index)
        return hidden, cache

    def _completions(self, prompts: Sequence[Prompt], decoded: DecodedTokens) -> list[Completion]:
        output, log_likelihood, num_sampled, num_passes = jax.device_get(self._replicate(tuple(decoded)))
        means = log_likelihood / np.maximum(1, num_sampled)
        return [
            Completion(_without_stop(prompt, output[row].tolist()), float(means[row]), int(num_passes))
            for row, prompt in enumerate(prompts)
        ]

    # Bodies of compiled functions.

    def _extended(
        self, parameters: nnx.State, cache: Cache, part: tuple[Array, Array, Array], start: Array, index: Array
    ) -> tuple[Float[Array, "R D"], Cache]:
        tokens, positions, image_positions = part
        starts = jnp.broadcast_to(start[:, None], tokens.shape)
        model: Transformer = nnx.merge(self._graph, parameters)
        hidden, cache = model.extend(tokens, positions, starts, image_positions, cache, index)
        return hidden[:, -1], cache

    def _copied_rows(self, cache: Cache, rows: Array, shift: Array | None, num_slots: int) -> Cache:
        copied = copy_rows(cache, rows, shift, num_slots)
        return jax.lax.with_sharding_constraint(copied, cache_sharding(len(rows), self._mesh))

    def _zeros(self, num_rows: int, num_slots: int, dtype: str) -> Cache:
        cache = self._model.empty_cache(num_rows, num_slots, dtype)
        return jax.lax.with_sharding_constraint(cache, cache_sharding(num_rows, self._mesh))


def _row_keys(seed_key: Array, indices: Array) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.wrap_key_data(seed_key), indices)


def _window(prompts: Sequence[Prompt], sampling: SamplingConfig) -> int:
    """Tokens verified per pass: only for plans of one number of image codes, and no more than those; else 0."""
    plans = {prompt.plan for prompt in prompts}
    lengths = {len(plan) for plan in plans}
    if not sampling.speculative_window or len(lengths) > 1 or any(set(plan) != {IMAGE_CODE} for plan in plans):
        return 0
    return max(2, min(sampling.speculative_window, *lengths))


def _guidance_scales(prompt: Prompt, sampling: SamplingConfig) -> tuple[float, float]:
    """Weights towards the text and towards the image; 1 changes nothing."""
    if len(prompt.variants) == 3:
        return sampling.edit_guidance, sampling.edit_image_guidance
    return (sampling.guidance if len(prompt.variants) == 2 else 1.0), 1.0


def _first_variants(prompt: Prompt, number: int) -> list[PromptVariant]:
    """As many variants for every prompt; a repeated last one adds nothing, whatever the weights."""
    variants = prompt.variants[:number]
    return [*variants, *[variants[-1]] * (number - len(variants))]


def _without_stop(prompt: Prompt, output: list[int]) -> list[int]:
    """The completion without the token that ended it."""
    tokens = output[: len(prompt.plan)]
    ends = [index for index, token in enumerate(tokens) if token == prompt.stop]
    return tokens[: ends[prompt.num_spans - 1]] if len(ends) >= prompt.num_spans else tokens
