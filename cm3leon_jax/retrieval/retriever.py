"""Neighbors for a single query, from the index that `prepare` left in a corpus: generation with retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, UInt8

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.array_files import check_file
from cm3leon_jax.data.corpus.neighbors import NONE, DatastoreDocuments, NeighborLists
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.encoders.base import Encoder, load_encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.retrieval.choice import Chosen, choose
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.retrieval.index import Index
from cm3leon_jax.retrieval.neighbor_search import INDEX_FILE, Memory


@dataclass(frozen=True)
class Neighbor:
    """A document that was found."""

    task: str
    # Its number in the training split of its task.
    document: int
    score: float
    tokens: Int[np.ndarray, "n"]


class Retriever:
    """Finds documents of a prepared corpus, by the rules its neighbor lists were made by."""

    def __init__(
        self, encoder: Encoder, index: Index, memory: Memory, documents: DatastoreDocuments, config: RetrievalConfig
    ) -> None:
        self._encoder, self._index, self._memory = encoder, index, memory
        self._documents, self._config = documents, config

    @classmethod
    def open(cls, config: Config, corpus: PreparedCorpus) -> Retriever:
        """Opens CORPUS/retrieval and the encoder that it was made with.

        Raises:
          UserError: if one of them is missing, or they do not belong together.
        """
        lists = NeighborLists.open(corpus, config.retrieval, config.corpus.train_split)
        encoder = load_encoder(config.encoder.path)
        folder, made_with = corpus.path / "retrieval", lists.manifest["encoder"]
        if made_with != encoder.fingerprint:
            raise UserError(
                f"the index {folder / INDEX_FILE} was built with another encoder (fingerprint {made_with}) than "
                f"the one at {config.encoder.path} ({encoder.fingerprint}): point config.encoder.path to that "
                f"one, or delete {folder} and run `cm3leon prepare` again"
            )
        fix = f"delete {folder / INDEX_FILE} and run `cm3leon prepare` again"
        check_file(folder / INDEX_FILE, lists.manifest["files"].get(INDEX_FILE, 0), fix)
        return cls(encoder, Index.open(folder / INDEX_FILE), Memory.open(folder), lists.memory, config.retrieval)

    def by_text(self, texts: Sequence[str], count: int) -> list[list[Neighbor]]:
        """The nearest documents of each text, best first; fewer where fewer are near enough."""
        return self._found(self._encoder.encode_texts(texts), count)

    def by_image(self, images: UInt8[np.ndarray, "n R R C"], count: int) -> list[list[Neighbor]]:
        """The same for images."""
        return self._found(self._encoder.encode_images(images), count)

    def _found(self, queries: Float32[np.ndarray, "n dim"], count: int) -> list[list[Neighbor]]:
        _, rows = self._index.search(queries, max(count, self._config.num_candidates))
        rows = np.where(queries.any(axis=1, keepdims=True), rows, NONE)
        num_queries, dim = queries.shape
        chosen = choose(
            self._memory.candidates(queries, rows, rows.shape[1]),
            np.full(num_queries, NONE),
            np.zeros((num_queries, dim), np.float32),
            Chosen.none(num_queries, dim),
            count,
            self._config.max_similarity,
            self._config.min_similarity,
        )
        return [
            [self._neighbor(row, score) for row, score in zip(found, scores_found, strict=True) if row != NONE]
            for found, scores_found in zip(chosen.rows.tolist(), chosen.scores.tolist(), strict=True)
        ]

    def _neighbor(self, row: int, score: float) -> Neighbor:
        index = int(self._memory.places[row])
        task, document = self._documents.origin(index)
        return Neighbor(task, document, score, self._documents.document(index))
