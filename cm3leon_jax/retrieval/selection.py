"""Selection of neighbors among the hits of a search: relevant, and unlike each other.

Near-duplicates of the document and of neighbors selected before are left out (arXiv 2211.12561, section 3.1; arXiv
2309.02591, section 2.1.2). They are recognized by the products of whole document embeddings: that of a caption with the
document of its own image stays far below 1, so a limit on the query's score alone would let copies through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from cm3leon_jax.data.corpus.neighbors import NONE


@dataclass(frozen=True)
class Hits:
    """Rows of the datastore for each of n queries, with their scores and document embeddings; row -1 is none."""

    rows: Int64[np.ndarray, "n K"]
    scores: Float32[np.ndarray, "n K"]
    vectors: Float32[np.ndarray, "n K dim"]

    @classmethod
    def none(cls, num_queries: int, count: int, dim: int) -> Hits:
        """Returns `count` empty hits per query."""
        return cls(
            np.full((num_queries, count), NONE, np.int64),
            np.zeros((num_queries, count), np.float32),
            np.zeros((num_queries, count, dim), np.float32),
        )

    def concat(self, other: Hits) -> Hits:
        return Hits(
            np.concatenate([self.rows, other.rows], axis=1),
            np.concatenate([self.scores, other.scores], axis=1),
            np.concatenate([self.vectors, other.vectors], axis=1),
        )


def select_neighbors(
    candidates: Hits,
    group_rows: Int64[np.ndarray, "n 2"],
    own_vectors: Float32[np.ndarray, "n dim"],
    selected: Hits,
    count: int,
    max_similarity: float,
    min_similarity: float,
) -> Hits:
    """Selects greedily, for each document, the best `count` candidates that differ enough from it and each other.

    Args:
      candidates: hits of each document's query, best first.
      group_rows: where the rows begin and end, in the datastore, of each document itself and of those with its image
        and other captions, if there are any.
      own_vectors: embedding of each document; zeros where there is only a query.
      selected: neighbors selected before, by another query.
      max_similarity: upper bound on the score, and on the similarity to the document and to every selected neighbor.
      min_similarity: lower bound on the score.
    """
    num_documents, num_candidates = candidates.rows.shape
    found = Hits.none(num_documents, count, own_vectors.shape[-1])
    num_found = np.zeros(num_documents, np.int64)
    for rank in range(num_candidates if count else 0):
        row, score, vector = candidates.rows[:, rank], candidates.scores[:, rank], candidates.vectors[:, rank]
        similarity = np.einsum("nd,nd->n", own_vectors, vector)
        for others in (selected.vectors, found.vectors):
            if others.shape[1]:
                similarity = np.maximum(similarity, np.einsum("nkd,nd->nk", others, vector).max(axis=1))
        # A row with a zero vector can be among the hits of two queries without being similar to itself.
        is_repeated = (selected.rows == row[:, None]).any(axis=1) | (found.rows == row[:, None]).any(axis=1)
        is_own = (row >= group_rows[:, 0]) & (row < group_rows[:, 1])
        is_good = (row != NONE) & ~is_own & ~is_repeated & (num_found < count)
        is_good &= (score >= min_similarity) & (score <= max_similarity) & (similarity <= max_similarity)
        document, slot = np.flatnonzero(is_good), num_found[is_good]
        found.rows[document, slot] = row[is_good]
        found.scores[document, slot] = score[is_good]
        found.vectors[document, slot] = vector[is_good]
        num_found += is_good
        if (num_found == count).all():
            break
    return found
