"""The choice of neighbors among the candidates of a search: relevant, of both modalities, and unlike each other.

Yasunaga et al. (arXiv 2211.12561, section 3.1) and CM3Leon (arXiv 2309.02591, section 2.1.2) leave out what is too much
like the document or like a neighbor that was taken already. How alike two documents are is the product of their whole
vectors: a caption's product with its own image's document stays far below 1, so the score of a query alone would let
copies of a document through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from cm3leon_jax.data.corpus.neighbors import NONE


@dataclass(frozen=True)
class Candidates:
    """What a search found for n queries, best first; row -1 is nothing."""

    rows: Int64[np.ndarray, "n C"]
    scores: Float32[np.ndarray, "n C"]
    # Whole vectors of the documents in those rows.
    vectors: Float32[np.ndarray, "n C dim"]


@dataclass(frozen=True)
class Chosen:
    """Neighbors of n documents, in the order they were taken; row -1 is none."""

    rows: Int64[np.ndarray, "n K"]
    scores: Float32[np.ndarray, "n K"]
    vectors: Float32[np.ndarray, "n K dim"]

    @classmethod
    def none(cls, count: int, dim: int) -> Chosen:
        """Nothing taken yet for `count` documents."""
        return cls(
            np.zeros((count, 0), np.int64), np.zeros((count, 0), np.float32), np.zeros((count, 0, dim), np.float32)
        )

    def and_then(self, other: Chosen) -> Chosen:
        """These, then the others."""
        return Chosen(
            *(
                np.concatenate([getattr(self, name), getattr(other, name)], axis=1)
                for name in ("rows", "scores", "vectors")
            )
        )


def choose(
    candidates: Candidates,
    own_rows: Int64[np.ndarray, "n"],
    own_vectors: Float32[np.ndarray, "n dim"],
    taken: Chosen,
    count: int,
    max_similarity: float,
    min_similarity: float,
) -> Chosen:
    """The best `count` candidates of each document that may stand beside what is taken.

    Args:
      candidates: of each document's query.
      own_rows: where each document itself lies in the memory; -1 if it does not.
      own_vectors: each document's whole vector; zeros where there is only a query.
      taken: neighbors chosen before, by another query.
      count: how many are chosen at most.
      max_similarity: no neighbor scores more with the query, or is more like the document or a taken neighbor.
      min_similarity: none scores less with the query.
    """
    num_documents, num_candidates = candidates.rows.shape
    rows = np.full((num_documents, count), NONE, np.int64)
    scores = np.zeros((num_documents, count), np.float32)
    vectors = np.zeros((num_documents, count, own_vectors.shape[-1]), np.float32)
    filled = np.zeros(num_documents, np.int64)
    everyone = np.arange(num_documents)
    for rank in range(num_candidates if count else 0):
        row, score, vector = candidates.rows[:, rank], candidates.scores[:, rank], candidates.vectors[:, rank]
        alike = np.einsum("nd,nd->n", own_vectors, vector)
        for others in (taken.vectors, vectors):
            if others.shape[1]:
                alike = np.maximum(alike, np.einsum("nkd,nd->nk", others, vector).max(axis=1))
        # A row may come twice with no likeness to itself, if its vector is zero.
        repeated = (taken.rows == row[:, None]).any(axis=1) | (rows == row[:, None]).any(axis=1)
        good = (row != NONE) & (row != own_rows) & ~repeated & (filled < count)
        good &= (score >= min_similarity) & (score <= max_similarity) & (alike <= max_similarity)
        which, place = everyone[good], filled[good]
        rows[which, place], scores[which, place], vectors[which, place] = row[good], score[good], vector[good]
        filled += good
        if (filled == count).all():
            break
    return Chosen(rows, scores, vectors)
