"""Distances between the features of real and of generated images, by the rank of the images of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, Int

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.frechet import Moments, frechet_distance
from cm3leon_jax.evaluation.manifold import manifold_values

# k of precision, recall, density and coverage.
_NEIGHBORS = 5
# Ranks after the best that have a value of their own.
_MOST_RANKS = 7

Discrepancy = Callable[[np.ndarray, np.ndarray], Estimate]


def compare(
    reference: Float32[np.ndarray, "m F"] | Moments,
    features: Float32[np.ndarray, "n F"],
    ranks: Int[np.ndarray, "n"],
    groups: Sequence[object],
    discrepancy: Discrepancy,
) -> dict[str, Estimate]:
    """Values by name.

    All are of the best image of each prompt, but `frechet_rank_K` of its K-th after that, up to the
    seventh, and `frechet_all` of all its
    images. Where the reference is moments, there is nothing but Frechet distances; precision, recall, density and
    coverage need more than five images on either side.

    Args:
      reference: of the real images.
      features: of the generated images.
      ranks: of each among the images of its prompt, 0 for the best.
      groups: the prompt of each.
      discrepancy: the kernel distance.

    Raises:
      UserError: for less than two images, or features of another width than the reference's.
    """
    width = len(reference.mean) if isinstance(reference, Moments) else reference.shape[1]
    if width != features.shape[1]:
        raise UserError(f"the reference's features have {width} numbers, those of the images {features.shape[1]}")
    counts = [int((ranks == rank).sum()) for rank in range(int(ranks.max(initial=0)) + 1)]
    if not isinstance(reference, Moments):
        counts.append(len(reference))
    if min(counts) < 2:
        raise UserError(
            f"a distance between sets of images needs two images in each, and there is {min(counts)}: ask for more "
            "prompts (config.evaluate.prompts or num_documents, or the set's), or give the metric a reference"
        )
    best = features[ranks == 0]
    values = {"frechet": frechet_distance(reference, best)}
    if (worst := int(ranks.max())) > 0:
        for rank in range(1, min(worst, _MOST_RANKS) + 1):
            values[f"frechet_rank_{rank}"] = frechet_distance(reference, features[ranks == rank])
        values["frechet_all"] = frechet_distance(reference, features, groups)
    if not isinstance(reference, Moments):
        values["discrepancy"] = discrepancy(reference, best)
        if min(len(reference), len(best)) > _NEIGHBORS:
            values |= manifold_values(reference, best, _NEIGHBORS)
    return values
