"""The CM3 objective: spans move to the end, so that a left-to-right model learns to fill in.

`a b c d e` with the span `b c` masked becomes `a <mask:0> d e <mask:0> b c <eoss>` (Aghajanyan et al., arXiv
2201.07520, section 2). No span crosses a `<break>` or an `</s>`, and neither is ever masked (arXiv 2309.02591,
section 2.2).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int32, Int64

from cm3leon_jax.config import ObjectiveConfig
from cm3leon_jax.data import counter_random
from cm3leon_jax.vocabulary import Vocabulary

# A masked span costs its mark in place, its mark at the tail, and the `<eoss>` behind it.
TOKENS_PER_SPAN = 3

_COUNT, _WHOLE, _SPANS = 11, 12, 13

Span = tuple[int, int]


def span_counts(objective: ObjectiveConfig, num_masks: int, *key: int | np.ndarray) -> Int64[np.ndarray, "..."]:
    """How many spans are drawn for each key (array parts of the key give an array of counts)."""
    most = min(objective.max_spans, num_masks)
    if objective.span_count == "none":
        return np.zeros(np.broadcast_shapes(*(np.shape(part) for part in key)), np.int64)
    if objective.span_count == "fixed":
        return np.full(np.broadcast_shapes(*(np.shape(part) for part in key)), min(int(objective.mean_spans), most))
    counts = np.arange(most)
    log_probability = counts * np.log(objective.mean_spans) - objective.mean_spans
    log_probability -= np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most)))])
    uniform = counter_random.uniform(*key, _COUNT)
    return np.asarray(np.searchsorted(np.cumsum(np.exp(log_probability)), uniform, side="right"))


def segments(tokens: Int[np.ndarray, "n"], vocabulary: Vocabulary) -> list[Span]:
    """The stretches between marks (`<break>`, `</s>`), as (start, stop); empty ones are left out."""
    marks = np.flatnonzero((tokens == vocabulary.break_) | (tokens == vocabulary.end)).tolist()
    starts, stops = [0, *(mark + 1 for mark in marks)], [*marks, len(tokens)]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if stop > start]


def draw_spans(length: int, parts: list[Span], count: int, objective: ObjectiveConfig, *key: int) -> list[Span]:
    """Draws at most `count` spans that do not touch each other's tokens, in order of position.

    Args:
      length: tokens of the sequence that is masked.
      parts: its segments.
      key: decides the draw.
    """
    if count == 0 or not parts:
        return []
    rng = counter_random.generator(*key, _SPANS)
    if len(parts) > 1 and counter_random.uniform(*key, _WHOLE) < objective.whole_segment_share:
        # One segment always stays, as the condition.
        chosen = rng.permutation(len(parts))[: min(count, len(parts) - 1)]
        return sorted(parts[i] for i in chosen)
    # More candidates than spans, since some fall on a mark or on a span already taken.
    ends = np.sort(rng.random((count**2, 2)), axis=1) * length
    spans: list[Span] = []
    for start, stop in np.stack([np.floor(ends[:, 0]), np.rint(ends[:, 1])], axis=1).astype(int).tolist():
        start, stop = _clip_to_segment(start, stop, parts)
        if stop > start and all(stop <= other_start or start >= other_stop for other_start, other_stop in spans):
            spans.append((start, stop))
        if len(spans) == count:
            break
    return sorted(spans)


def _clip_to_segment(start: int, stop: int, parts: list[Span]) -> Span:
    """The part of a span that lies in the segment it overlaps most."""
    clipped = [(max(start, part_start), min(stop, part_stop)) for part_start, part_stop in parts]
    return max(clipped, key=lambda span: span[1] - span[0])


def picture_places(tokens: Int[np.ndarray, "n"], vocabulary: Vocabulary) -> Int32[np.ndarray, "n"]:
    """For each image code, 1 + the place in its picture that follows it (so 2, 3, ..); 0 for every other token."""
    is_code = vocabulary.is_image(tokens)
    index = np.arange(len(tokens))
    before_picture = np.maximum.accumulate(np.where(is_code, -1, index)) if len(tokens) else index
    return np.where(is_code, index - before_picture + 1, 0).astype(np.int32)


def move_spans(
    tokens: Int[np.ndarray, "n"],
    places: Int[np.ndarray, "n"],
    spans: list[Span],
    vocabulary: Vocabulary,
    limit: int | None = None,
) -> tuple[Int32[np.ndarray, "m"], Int32[np.ndarray, "m"]]:
    """Replaces each span by its mark and appends mark, span and `<eoss>` at the end.

    Args:
      tokens: the sequence.
      places: its `picture_places`; a moved code keeps its own, and a mark gets the place that follows it.
      spans: what moves, in order.
      limit: longest result; what is over is cut from the end of the source, so that every tail survives.

    Returns:
      Tokens and places.
    """
    columns = np.stack([tokens, places])
    source: list[np.ndarray] = []
    tail: list[np.ndarray] = []
    last = 0
    for index, (start, stop) in enumerate(spans):
        mark = vocabulary.mask(index)
        source += [columns[:, last:start], np.array([[mark], [places[stop - 1]]])]
        tail_mark = np.array([[mark], [max(0, places[start] - 1)]])
        tail += [tail_mark, columns[:, start:stop], np.array([[vocabulary.eoss], [0]])]
        last = stop
    kept = np.concatenate([*source, columns[:, last:]], axis=1)
    moved = np.concatenate([np.zeros((2, 0), np.int32), *tail], axis=1)
    if limit is not None:
        kept = kept[:, : max(0, limit - moved.shape[1])]
    result = np.concatenate([kept, moved], axis=1)[:, :limit].astype(np.int32)
    return result[0], result[1]
