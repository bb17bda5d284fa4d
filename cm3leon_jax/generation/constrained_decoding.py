"""Which tokens may come next: the grammar of texts, images and marks.

An image has exactly as many codes as the image tokenizer gives, stands between breaks, and is begun only where all of
it still fits.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from cm3leon_jax.generation.prompts import ANYTHING, IMAGE_CODE, TEXT_TOKEN
from cm3leon_jax.vocabulary import NUM_SPECIAL, Vocabulary


class ConstraintState(NamedTuple):
    """What the grammar knows of each row before its next token."""

    # The plan's entry for this token, and how many tokens the plan has left, this one included.
    plan: Int[Array, "B"]
    room: Int[Array, "B"]
    # The token before.
    last: Int[Array, "B"]
    # Codes that the image in progress still lacks; 0 outside of images.
    image_tokens_left: Int[Array, "B"]
    # The mark that ends a text, and how many texts are still to come, the one in progress included.
    stop: Int[Array, "B"]
    spans_left: Int[Array, "B"]
    num_spans: Int[Array, "B"]
    image_length: Int[Array, "B"]


def candidate_ids(entries: frozenset[int], vocabulary: Vocabulary) -> Int[np.ndarray, "V"]:
    """The ids that these entries of plans let through, so that no score is computed for the others.

    For images that is the codebook: an eighth of the paper's vocabulary.
    """
    v = vocabulary
    codes = np.arange(v.first_image_code, v.first_image_code + v.num_image_codes)
    if ANYTHING in entries or {IMAGE_CODE, TEXT_TOKEN} <= entries:
        return np.arange(v.size)
    if TEXT_TOKEN in entries:
        return np.concatenate([np.arange(v.first_image_code), np.arange(codes[-1] + 1, v.size)])
    return codes


def legal_tokens(ids: Int[Array, "V"], expected: ConstraintState, vocabulary: Vocabulary) -> Bool[Array, "B V"]:
    """Which of `ids` each row may draw; for a mark that must stand there, see `forced_tokens`."""
    v, e = vocabulary, expected
    is_code = is_image_code(ids, v)
    is_text = (ids >= NUM_SPECIAL) & (ids < v.first_image_code)

    def rows(condition: Bool[Array, "B"]) -> Bool[Array, "B 1"]:
        return condition[:, None]

    ends_text = is_text | (ids == e.stop[:, None])
    begins = (e.last == v.break_) | (e.last == v.end)
    in_image = e.image_tokens_left > 0
    after_image = is_image_code(e.last, v) & ~in_image
    fits = begins & (e.room >= e.image_length) & (e.image_length > 0)
    anything = jnp.where(
        rows(in_image),
        is_code,
        (is_text & rows(~after_image))
        | (is_code & rows(fits))
        # A break promises another segment, and needs room for it.
        | ((ids == v.break_) & rows(~begins & (e.room >= 2)))
        | ((ids == v.end) & rows(~begins)),
    )
    return jnp.where(
        rows(e.plan == IMAGE_CODE),
        is_code,
        jnp.where(rows(e.plan == TEXT_TOKEN), ends_text, jnp.where(rows(e.plan == ANYTHING), anything, True)),
    )


def forced_tokens(expected: ConstraintState, vocabulary: Vocabulary) -> Int[Array, "B"]:
    """The mark that must stand there, or -1: the plan's own, or the one that opens the next text."""
    e = expected
    opens_next = (e.plan == TEXT_TOKEN) & (e.last == e.stop) & (e.spans_left < e.num_spans)
    return jnp.where(opens_next, vocabulary.first_mask + e.num_spans - e.spans_left, jnp.maximum(e.plan, -1))


def image_tokens_left_after(
    token: Int[Array, "B"], expected: ConstraintState, vocabulary: Vocabulary
) -> Int[Array, "B"]:
    """`ConstraintState.image_tokens_left` once `token` stands there."""
    e = expected
    left = jnp.where(e.image_tokens_left > 0, e.image_tokens_left, e.image_length) - 1
    return jnp.where((e.plan == ANYTHING) & is_image_code(token, vocabulary), left, 0)


def is_image_code(token: Int[Array, "..."], vocabulary: Vocabulary) -> Bool[Array, "..."]:
    """Which tokens are codes of images; `Vocabulary.is_image` for arrays in a compiled function."""
    first = vocabulary.first_image_code
    return (token >= first) & (token < first + vocabulary.num_image_codes)
