"""The CM3 objective: spans move to the end, so that a left-to-right model learns to fill in.

`a b c d e` with the span `b c` masked becomes `a <mask:0> d e <mask:0> b c <eoss>` (Aghajanyan et al., arXiv
2201.07520, section 2). No span crosses a `<break>` or an `</s>`, and neither is ever masked (arXiv 2309.02591,
section 2.2).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64, UInt64

from cm3leon_jax import counter_random
from cm3leon_jax.counter_random import Stream
from cm3leon_jax.data.batches.config import LossWeightsConfig, ObjectiveConfig
from cm3leon_jax.documents import Role
from cm3leon_jax.vocabulary import Vocabulary

# A masked span costs its sentinel in place, its sentinel at the end of the sequence, and the `<eoss>` after it.
SENTINELS_PER_SPAN = 3

Span = tuple[int, int]


def span_counts(objective: ObjectiveConfig, num_masks: int, *key: int | np.ndarray) -> Int64[np.ndarray, "..."]:
    """The number of spans for each key; array parts of the key give an array of counts."""
    most = min(objective.max_spans, num_masks)
    if objective.span_count != "poisson":
        count = min(int(objective.mean_spans), most) if objective.span_count == "fixed" else 0
        return np.full(np.broadcast_shapes(*(np.shape(part) for part in key)), count)
    counts = np.arange(most)
    log_probability = counts * np.log(objective.mean_spans) - objective.mean_spans
    log_probability -= np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most)))])
    uniform = counter_random.uniform(*key, Stream.SPAN_COUNT)
    return np.asarray(np.searchsorted(np.cumsum(np.exp(log_probability)), uniform, side="right"))


@dataclass(frozen=True)
class SpanMasks:
    """The random part of the masks of n sequences, sampled for all at once; `sample_spans` finishes one."""

    # Most spans of each.
    counts: Int64[np.ndarray, "n"]
    # Whether whole segments are masked, where there are several.
    is_whole: Bool[np.ndarray, "n"]
    # The key of each one's generator.
    keys: UInt64[np.ndarray, "n"]


def sample_span_masks(objective: ObjectiveConfig, num_masks: int, *key: int | np.ndarray) -> SpanMasks:
    """Samples the masks of each key, whose array parts have one entry per sequence."""
    return SpanMasks(
        span_counts(objective, num_masks, *key),
        counter_random.uniform(*key, Stream.WHOLE_SEGMENTS) < objective.segment_mask_prob,
        counter_random.hash64(*key, Stream.SPANS),
    )


def separator_indices(tokens: Int[np.ndarray, "n"], vocabulary: Vocabulary) -> list[int]:
    """Indices of `<break>` and `</s>`."""
    return np.flatnonzero((tokens == vocabulary.break_) | (tokens == vocabulary.end)).tolist()


def segments_between(separators: list[int], start: int, stop: int) -> list[Span]:
    """The segments of tokens `start` .. `stop` of a sequence with these separators, counted from `start`."""
    inside = separators[bisect_left(separators, start) : bisect_left(separators, stop)]
    edges = [start - 1, *inside, stop]
    return [(left + 1 - start, right - start) for left, right in pairwise(edges) if right > left + 1]


def segments(tokens: Int[np.ndarray, "n"], vocabulary: Vocabulary) -> list[Span]:
    """The non-empty segments between separators, as (start, stop)."""
    return segments_between(separator_indices(tokens, vocabulary), 0, len(tokens))


def sample_spans(length: int, parts: list[Span], count: int, is_whole: bool, rng: np.random.Generator) -> list[Span]:
    """Samples at most `count` disjoint spans of a sequence, in order; `is_whole`: they are some of its `parts`."""
    if count == 0 or not parts:
        return []
    if len(parts) > 1 and is_whole:
        # One segment always stays, as the condition.
        chosen = rng.permutation(len(parts))[: min(count, len(parts) - 1)]
        return sorted(parts[i] for i in chosen.tolist())
    spans: list[Span] = []
    # More candidates than spans, since some fall on a separator or on a span already taken.
    for ends in rng.random((count**2, 2)).tolist():
        start, stop = _clip_to_segment(math.floor(min(ends) * length), round(max(ends) * length), parts)
        if stop > start and all(stop <= other_start or start >= other_stop for other_start, other_stop in spans):
            spans.append((start, stop))
        if len(spans) == count:
            break
    return sorted(spans)


def _clip_to_segment(start: int, stop: int, parts: list[Span]) -> Span:
    """The part of a span in the segment it overlaps most."""
    clipped = [(max(start, part_start), min(stop, part_stop)) for part_start, part_stop in parts]
    return max(clipped, key=lambda span: span[1] - span[0])


def positions_in_image(tokens: Int[np.ndarray, "n"], vocabulary: Vocabulary) -> Int32[np.ndarray, "n"]:
    """For each image code, 1 + the position in its image of what follows it (so 2, 3, ..); 0 for every other token."""
    is_code = np.zeros(len(tokens) + 2, bool)
    is_code[1:-1] = vocabulary.is_image(tokens)
    edges = np.flatnonzero(is_code[1:] != is_code[:-1]).tolist()
    images = list(zip(edges[::2], edges[1::2], strict=True))
    inside = np.arange(2, 2 + max((stop - start for start, stop in images), default=0), dtype=np.int32)
    positions = np.zeros(len(tokens), np.int32)
    for start, stop in images:
        positions[start:stop] = inside[: stop - start]
    return positions


def apply_span_masks(
    tokens: Int[np.ndarray, "n"],
    positions: Int[np.ndarray, "n"],
    spans: list[Span],
    vocabulary: Vocabulary,
    limit: int | None = None,
) -> tuple[Int32[np.ndarray, "m"], Int32[np.ndarray, "m"]]:
    """Replaces each span by its sentinel and appends sentinel, span and `<eoss>` at the end.

    Args:
      positions: those in images; a moved code keeps its own, a sentinel gets the position that follows it.
      limit: longest result; tokens before the first moved span are dropped for it, and only then the end.
    """
    moved = mask_spans(np.stack([tokens, positions]), spans, vocabulary, limit)
    return moved[0], moved[1]


def mask_spans(
    rows: Int[np.ndarray, "k n"], spans: list[Span], vocabulary: Vocabulary, limit: int | None = None
) -> Int32[np.ndarray, "k m"]:
    """`apply_span_masks` of rows: tokens, positions in images and, if there is a third, roles.

    A sentinel has the role of what stands before its span, the `<eoss>` that of the span it ends.
    """
    num_rows, length = rows.shape

    def column(token: int, position: int, role: int) -> Int[np.ndarray, "k 1"]:
        return np.array([token, position, role])[:num_rows, None]

    def role_at(index: int) -> int:
        return int(rows[2, max(0, index)]) if num_rows > 2 else 0

    source: list[np.ndarray] = []
    tail: list[np.ndarray] = []
    last = 0
    for index, (start, stop) in enumerate(spans):
        sentinel, outside = vocabulary.mask(index), role_at(start - 1)
        source += [rows[:, last:start], column(sentinel, int(rows[1, stop - 1]), outside)]
        end = column(vocabulary.eoss, 0, min(role_at(stop - 1), Role.TARGET))
        tail += [column(sentinel, max(0, int(rows[1, start]) - 1), outside), rows[:, start:stop], end]
        last = stop
    source.append(rows[:, last:])
    moved = np.concatenate([*source, *tail], axis=1, dtype=np.int32)
    if limit is not None and moved.shape[1] > limit:
        kept = length + sum(1 + start - stop for start, stop in spans)
        first_dropped = max(0, kept - (moved.shape[1] - limit))
        moved = np.concatenate([moved[:, :first_dropped], moved[:, kept:]], axis=1)[:, :limit]
    return moved


def role_weights(weights: LossWeightsConfig) -> Float32[np.ndarray, "roles 2"]:
    """What a token of each role counts in the loss: one that is no image code, and one that is."""
    by_role = {
        Role.CONTEXT: weights.context,
        Role.INSTRUCTION: weights.instruction,
        Role.TARGET: 1.0,
        Role.CHANGED: weights.changed,
        Role.RETRIEVED: weights.retrieved,
    }
    return np.array([[by_role[role] * weights.text, by_role[role] * weights.image] for role in Role], np.float32)
