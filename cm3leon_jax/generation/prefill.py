"""Plans the prefill of a batch: every distinct variant goes through the model once, and so does what they share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from cm3leon_jax.generation.prompt import PromptVariant
from cm3leon_jax.models.cache import grown
from cm3leon_jax.models.transformer import Cache

# Tokens per pass.
CHUNK = 256
# A common prefix shorter than this is not worth a pass of its own.
_SHORTEST_PREFIX = 32

_Item = TypeVar("_Item", bound=Hashable)


def rounded_up(number: int, least: int = 1) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ..: few sizes, for few compiled programs, and at most a half too big."""
    power = 1 << (max(number, 1) - 1).bit_length()
    between = power * 3 // 4
    return max(least, between if number <= between else power)


@dataclass(frozen=True)
class PrefillRows:
    """Rows of tokens side by side, padded on the left to a common width."""

    tokens: Int32[np.ndarray, "R W"]
    # -1 for padding.
    positions: Int32[np.ndarray, "R W"]
    image_positions: Int32[np.ndarray, "R W"]

    @classmethod
    def of(cls, variants: Sequence[PromptVariant], first_positions: Sequence[int]) -> PrefillRows:
        """Each variant from one of its positions on."""
        longest = max(len(v.tokens) - first for v, first in zip(variants, first_positions, strict=True))
        width = rounded_up(longest, 16) if longest <= CHUNK else -(-longest // CHUNK) * CHUNK
        arrays = np.zeros((3, rounded_up(len(variants)), width), np.int32)
        arrays[1] = -1
        for row, (variant, first) in enumerate(zip(variants, first_positions, strict=True)):
            columns = slice(width - (len(variant.tokens) - first), None)
            arrays[0, row, columns] = variant.tokens[first:]
            arrays[1, row, columns] = np.arange(first, len(variant.tokens))
            arrays[2, row, columns] = variant.image_positions[first:]
        return cls(*arrays)


@dataclass(frozen=True)
class PrefillPlan:
    """Common prefixes first, then what follows them (suffixes), then copies of these for every variant."""

    prefixes: PrefillRows | None
    # Row of `prefixes` that each row of `suffixes` begins with, and its length.
    prefix_row: Int32[np.ndarray, "U"]
    prefix_length: Int32[np.ndarray, "U"]
    suffixes: PrefillRows
    # Length of each row of `suffixes`, its prefix included.
    length: Int32[np.ndarray, "U"]
    # Row of `suffixes` for each variant.
    suffix_row: Int32[np.ndarray, "R"]
    # Slots of the cache that the prompts take up.
    num_slots: int


def plan_prefill(groups: Sequence[Sequence[PromptVariant]]) -> PrefillPlan:
    """Plans the prefill of the variants of some prompts, prompt by prompt."""
    suffix_row, distinct = _distinct([variant for group in groups for variant in group])
    # What the other variants of a prompt share with its first.
    shared = dict.fromkeys(distinct, 0)
    for first, *others in groups:
        for other in others:
            common = _common_prefix(first, other)
            shared[first], shared[other] = max(shared[first], common), max(shared[other], common)
    lengths = [shared[variant] if shared[variant] >= _SHORTEST_PREFIX else 0 for variant in distinct]
    prefix_row, prefixes = _distinct(
        [PromptVariant(v.tokens[:n], v.image_positions[:n]) for v, n in zip(distinct, lengths, strict=True)]
    )
    suffixes = PrefillRows.of(distinct, lengths)
    spare = [0] * (len(suffixes.tokens) - len(distinct))
    return PrefillPlan(
        prefixes=PrefillRows.of(prefixes, [0] * len(prefixes)) if any(lengths) else None,
        prefix_row=np.array(prefix_row + spare, np.int32),
        prefix_length=np.array(lengths + spare, np.int32),
        suffixes=suffixes,
        length=np.array([len(variant.tokens) for variant in distinct] + spare, np.int32),
        suffix_row=np.array(suffix_row, np.int32),
        num_slots=max(suffixes.tokens.shape[1], max(len(variant.tokens) for variant in distinct)),
    )


def copy_rows(cache: Cache, rows: Int[Array, "R"], shift: Int[Array, "R"] | None, num_slots: int) -> Cache:
    """A cache of `num_slots` slots whose row r begins with row rows[r] of another.

    With `shift`, row r is moved by shift[r] slots towards the end (or, below 0, the beginning).
    """
    copied = jax.tree.map(lambda array: jnp.take(array, rows, axis=0), cache)
    if shift is None:
        return grown(copied, num_slots)
    source = jnp.arange(num_slots) - shift[:, None]

    def moved(array: Array) -> Array:
        index = jnp.clip(source, 0, array.shape[2] - 1).reshape(len(rows), 1, num_slots, *[1] * (array.ndim - 3))
        return jnp.take_along_axis(array, index, axis=2)

    return jax.tree.map(moved, copied)


def _distinct(items: Sequence[_Item]) -> tuple[list[int], list[_Item]]:
    """The distinct items in order of appearance, and which of them each item is."""
    number: dict[_Item, int] = {}
    return [number.setdefault(item, len(number)) for item in items], list(number)


def _common_prefix(one: PromptVariant, other: PromptVariant) -> int:
    """How many tokens both begin with; each keeps one token for itself, from which its completion goes on."""
    pairs = [list(zip(v.tokens[:-1], v.image_positions[:-1], strict=True)) for v in (one, other)]
    shortest = min(map(len, pairs))
    return next((index for index in range(shortest) if pairs[0][index] != pairs[1][index]), shortest)
