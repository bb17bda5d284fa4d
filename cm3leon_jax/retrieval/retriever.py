"""Neighbors of single queries, for generation with retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float32, Int, UInt8

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.neighbors import NONE, DatastoreDocuments, NeighborLists
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.encoders.base import Encoder, load_encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.retrieval.datastore import Datastore
from cm3leon_jax.retrieval.search import Search
from cm3leon_jax.retrieval.selection import Hits, select_neighbors


@dataclass(frozen=True)
class Neighbor:
    task: str
    # Index in the training split of the task.
    document: int
    score: float
    tokens: Int[np.ndarray, "n"]


@dataclass(frozen=True)
class Retriever:
    """Finds documents of a prepared corpus, by the rules that its neighbor lists were made with."""

    encoder: Encoder
    search: Search
    datastore: Datastore
    documents: DatastoreDocuments
    config: RetrievalConfig

    @classmethod
    def open(cls, config: Config, corpus: PreparedCorpus) -> Retriever:
        """Opens CORPUS/retrieval and the encoder at `config.encoder.path`, which have to belong together."""
        lists = NeighborLists.open(corpus, config.retrieval, config.corpus.train_split)
        encoder = load_encoder(config.encoder.path)
        folder, made_with = corpus.path / "retrieval", lists.manifest["encoder"]
        if made_with != encoder.fingerprint:
            raise UserError(
                f"the datastore {folder} was built with another encoder (fingerprint {made_with}) than "
                f"the one at {config.encoder.path} ({encoder.fingerprint}): point config.encoder.path to that "
                f"one, or delete {folder} and run `cm3leon prepare` again"
            )
        datastore = Datastore.open(folder)
        # Of this process alone: each process of a run retrieves for prompts of its own.
        devices = jax.local_devices()
        mesh = jax.make_mesh((len(devices),), ("shard",), (jax.sharding.AxisType.Auto,), devices=devices)
        return cls(encoder, Search(datastore.vectors, mesh), datastore, lists.documents, config.retrieval)

    def by_text(self, texts: Sequence[str], count: int) -> list[list[Neighbor]]:
        """Finds the nearest documents of each text, best first; fewer where fewer are near enough."""
        return self._find(self.encoder.encode_texts(texts), count)

    def by_image(self, images: UInt8[np.ndarray, "n R R C"], count: int) -> list[list[Neighbor]]:
        return self._find(self.encoder.encode_images(images), count)

    def _find(self, queries: Float32[np.ndarray, "n dim"], count: int) -> list[list[Neighbor]]:
        _, rows = self.search(queries, max(count, self.config.num_candidates))
        rows = np.where(queries.any(axis=1, keepdims=True), rows, NONE)
        num_queries, dim = queries.shape
        selected = select_neighbors(
            self.datastore.hits(queries, rows, rows.shape[1]),
            np.zeros((num_queries, 2), np.int64),
            np.zeros((num_queries, dim), np.float32),
            Hits.none(num_queries, 0, dim),
            count,
            self.config.max_similarity,
            self.config.min_similarity,
        )
        return [
            [self._neighbor(row, score) for row, score in zip(rows, scores, strict=True) if row != NONE]
            for rows, scores in zip(selected.rows.tolist(), selected.scores.tolist(), strict=True)
        ]

    def _neighbor(self, row: int, score: float) -> Neighbor:
        index = int(self.datastore.documents[row])
        task, document = self.documents.origin(index)
        return Neighbor(task, document, score, self.documents.document(index))
