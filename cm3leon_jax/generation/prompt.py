"""A prompt as ids: what is continued, what guidance compares it with, and the plan of the completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from cm3leon_jax.data.batches.objective import positions_in_image
from cm3leon_jax.vocabulary import Vocabulary

# Entries of a plan that are not ids: any image code; any text token, or the token that ends the text; whatever may come
# next in a document.
IMAGE_CODE, TEXT_TOKEN, ANYTHING = -1, -2, -3

# The ids of a retrieved document: TEXT <break> IMAGE.
Retrieved = Sequence[Sequence[int]]

Codes = Int[np.ndarray, "codes"]


@dataclass(frozen=True)
class PromptVariant:
    """Ids to continue, and their positions in images (objective.positions_in_image)."""

    tokens: tuple[int, ...]
    image_positions: tuple[int, ...]

    @classmethod
    def of(cls, tokens: Sequence[int], vocabulary: Vocabulary) -> PromptVariant:
        """A variant whose images are not masked."""
        ids = tuple(int(token) for token in tokens)
        return cls(ids, tuple(positions_in_image(np.array(ids), vocabulary).tolist()))


@dataclass(frozen=True)
class Prompt:
    """What is continued, what guidance compares it with, and the plan of the completion."""

    # The prompt; then, where there is something to guide away from, the same without its text; then, where it has an
    # image besides, without both.
    variants: tuple[PromptVariant, ...]
    # One entry per generated token: IMAGE_CODE, TEXT_TOKEN, ANYTHING, or the id of a special token that must come.
    plan: tuple[int, ...]
    # Positions in images, except where the plan says ANYTHING: those follow from the sampled tokens.
    plan_image_positions: tuple[int, ...]
    # Ends a text of the completion, and the completion itself after `num_spans` texts.
    stop: int = -1
    num_spans: int = 1
    # Codes of an image, where the completion may hold whole ones.
    image_length: int = 0


def prefix(retrieved: Retrieved, vocabulary: Vocabulary) -> tuple[int, ...]:
    """What comes before a prompt: `</s>`, and the retrieved documents."""
    documents = [token for document in retrieved for token in (*document, vocabulary.break_)]
    return (vocabulary.end, *documents)


def positions_of_an_image(image_length: int) -> tuple[int, ...]:
    """The positions of a generated image's codes."""
    return tuple(range(2, image_length + 2))
