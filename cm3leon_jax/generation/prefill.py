"""Reading prompts into the cache: every different prompt once, and what prompts have in common once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from cm3leon_jax.generation.prompts import PromptVariant
from cm3leon_jax.models.cache import grown
from cm3leon_jax.models.transformer import Cache

# Tokens read at a time.
CHUNK = 256
# A common beginning shorter than this is not worth a step of its own.
_SHORTEST_PREFIX = 32

_Item = TypeVar("_Item", bound=Hashable)


def rounded_up(number: int, least: int = 1) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ..: few sizes, for few compiled programs, and at most a half too big."""
    power = 1 << (max(number, 1) - 1).bit_length()
    between = power * 3 // 4
    return max(least, between if number <= between else power)


@dataclass(frozen=True)
class PrefillRows:
    """Token rows to read side by side, padded on the left to a common width."""

    tokens: Int32[np.ndarray, "R W"]
    # -1 for padding.
    positions: Int32[np.ndarray, "R W"]
    image_positions: Int32[np.ndarray, "R W"]

    @classmethod
    def of(cls, variants: Sequence[PromptVariant], first_positions: Sequence[int]) -> PrefillRows:
        """Each stream from one of its positions on."""
        parts = list(zip(variants, first_positions, strict=True))
        longest = max(len(stream.tokens) - first for stream, first in parts)
        width = rounded_up(longest, 16) if longest <= CHUNK else -(-longest // CHUNK) * CHUNK
        arrays = np.zeros((3, rounded_up(len(parts)), width), np.int32)
        arrays[1] = -1
        for row, (stream, first) in enumerate(parts):
            columns = slice(width - (len(stream.tokens) - first), None)
            arrays[0, row, columns] = stream.tokens[first:]
            arrays[1, row, columns] = np.arange(first, len(stream.tokens))
            arrays[2, row, columns] = stream.image_positions[first:]
        return cls(*arrays)


@dataclass(frozen=True)
class Plan:
    """How a batch of streams is read: common beginnings first, then what follows them, then copied to every row."""

    prefixes: PrefillRows | None
    # Row of `prefixes` that each row of `rests` begins with, and how long that is.
    prefix_row: Int32[np.ndarray, "U"]
    prefix_length: Int32[np.ndarray, "U"]
    rests: PrefillRows
    # Length of each row of `rests`, its prefix included.
    length: Int32[np.ndarray, "U"]
    # Row of `rests` for each stream.
    rest_row: Int32[np.ndarray, "R"]
    # Slots of the cache that the prompts take up.
    num_slots: int

    @property
    def num_read(self) -> int:
        """Tokens that go through the model, padding left out."""
        prefixes = 0 if self.prefixes is None else int((self.prefixes.positions >= 0).sum())
        return prefixes + int((self.rests.positions >= 0).sum())


def plan_prefill(groups: Sequence[Sequence[PromptVariant]]) -> Plan:
    """Plans the reading of the streams of some prompts, prompt by prompt."""
    rest_row, distinct = _distinct([stream for group in groups for stream in group])
    # What the other streams of a prompt share with its first.
    shared = dict.fromkeys(distinct, 0)
    for first, *others in groups:
        for other in others:
            common = _common_prefix(first, other)
            shared[first], shared[other] = max(shared[first], common), max(shared[other], common)
    lengths = [shared[stream] if shared[stream] >= _SHORTEST_PREFIX else 0 for stream in distinct]
    prefix_row, prefixes = _distinct(
        [PromptVariant(s.tokens[:n], s.image_positions[:n]) for s, n in zip(distinct, lengths, strict=True)]
    )
    rests = PrefillRows.of(distinct, lengths)
    spare = [0] * (len(rests.tokens) - len(distinct))
    return Plan(
        prefixes=PrefillRows.of(prefixes, [0] * len(prefixes)) if any(lengths) else None,
        prefix_row=np.array(prefix_row + spare, np.int32),
        prefix_length=np.array(lengths + spare, np.int32),
        rests=rests,
        length=np.array([len(stream.tokens) for stream in distinct] + spare, np.int32),
        rest_row=np.array(rest_row, np.int32),
        num_slots=max(rests.tokens.shape[1], max(len(stream.tokens) for stream in distinct)),
    )


def copy_rows(cache: Cache, rows: Int[Array, "R"], num_slots: int) -> Cache:
    """A cache of `num_slots` slots whose row r begins with row rows[r] of another."""
    return grown(jax.tree.map(lambda array: jnp.take(array, rows, axis=0), cache), num_slots)


def copy_moved_rows(cache: Cache, rows: Int[Array, "R"], shift: Int[Array, "R"], num_slots: int) -> Cache:
    """The same, with row r moved by shift[r] slots towards the end (or, below 0, the beginning)."""

    def copied(array: Array) -> Array:
        index = jnp.clip(jnp.arange(num_slots) - shift[:, None], 0, array.shape[2] - 1)
        index = index.reshape(len(rows), 1, num_slots, *[1] * (array.ndim - 3))
        return jnp.take_along_axis(jnp.take(array, rows, axis=0), index, axis=2)

    return jax.tree.map(copied, cache)


def _distinct(items: Sequence[_Item]) -> tuple[list[int], list[_Item]]:
    """The different items in the order they first come in, and which of them each item is."""
    number: dict[_Item, int] = {}
    return [number.setdefault(item, len(number)) for item in items], list(number)


def _common_prefix(one: PromptVariant, other: PromptVariant) -> int:
    """How many tokens both begin with; each keeps one token for itself, from which its answer goes on."""
    shortest = min(len(one.tokens), len(other.tokens)) - 1
    pairs = zip(
        zip(one.tokens, one.image_positions, strict=True),
        zip(other.tokens, other.image_positions, strict=True),
        strict=False,
    )
    return next((index for index, (a, b) in enumerate(pairs) if a != b or index == shortest), shortest)
