"""Writes the neighbor lists of a corpus: searches for each document's queries and selects among the hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float16, Float32, Int64
from tqdm import tqdm

from cm3leon_jax.data.corpus.neighbors import NONE, DatastoreDocuments, lists_record, save_lists
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.distributed import all_processes, is_coordinator
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.retrieval.datastore import Datastore
from cm3leon_jax.retrieval.search import Search
from cm3leon_jax.retrieval.selection import Hits, select_neighbors
from cm3leon_jax.retrieval.vectors import document_embeddings, num_shards, open_vectors

# Documents per selection: the vectors of all their candidates are in memory together.
_BLOCK = 1024
# Rows that a search returns beyond the candidates: its rounding decides which of nearly equal scores it returns.
_SPARE = 15


@dataclass(frozen=True)
class ListWriter:
    """Finds and writes the neighbors of all documents; all processes search together."""

    corpus: PreparedCorpus
    documents: DatastoreDocuments
    datastore: Datastore
    search: Search
    config: RetrievalConfig
    train_split: str

    def write(self, task: str, split: str) -> None:
        """Writes the missing lists of a task and split, one shard per process at a time."""
        folder = self.corpus.path / "retrieval" / task / split
        shards = range(num_shards(self.corpus, task, split))
        vectors, queries = zip(*(open_vectors(folder, shard) for shard in shards), strict=True)
        first_document = np.cumsum([0, *map(len, vectors)])
        # A search is a collective, so the processes must agree on the shards.
        missing = [shard for shard in shards if not all_processes(lists_record(folder, shard).exists())]
        for start in range(0, len(missing), jax.process_count()):
            together = missing[start : start + jax.process_count()]
            shared_queries = [queries[shard] for shard in together]
            if jax.process_index() >= len(together):
                # Fewer shards than processes are left: this one only takes part in the search.
                self._neighbors(vectors[0][:0], shared_queries, np.zeros((0, 2), np.int64), "")
                continue
            shard = together[jax.process_index()]
            group_rows = np.zeros((len(vectors[shard]), 2), np.int64)
            if split == self.train_split and task in self.documents.tasks:
                numbers = np.arange(first_document[shard], first_document[shard + 1])
                group_rows = self.datastore.rows_of(self.documents.groups(task, numbers))
            rows, scores = self._neighbors(vectors[shard], shared_queries, group_rows, f"neighbors {task} {split}")
            found = np.where(rows == NONE, NONE, self.datastore.documents[np.maximum(rows, 0)])
            save_lists(folder, shard, found.astype(np.int64), scores)

    def _neighbors(
        self,
        vectors: Float16[np.ndarray, "n 2 dim"],
        queries: Sequence[Float16[np.ndarray, "_ 2 dim"]],
        group_rows: Int64[np.ndarray, "n 2"],
        what: str,
    ) -> tuple[Int64[np.ndarray, "n kept"], Float32[np.ndarray, "n kept"]]:
        """Finds rows and scores of the neighbors of this process's shard: by text, then by images.

        `vectors` and `group_rows` (in the datastore) are of the shard's documents; `queries` of the shards of the
        first so many processes, which all processes search for together.
        """
        config, mine = self.config, jax.process_index()
        num_candidates = config.num_candidates + 1  # A document finds itself.
        blocks = []
        disable = None if is_coordinator() else True
        with tqdm(total=len(vectors), unit=" documents", desc=what, disable=disable) as progress:
            for start in range(0, max(1, *map(len, queries)), _BLOCK):
                block = slice(start, start + _BLOCK)
                embeddings = document_embeddings(vectors[block])
                selected = Hits.none(len(embeddings), 0, embeddings.shape[1])
                for part, count in enumerate((config.num_by_text, config.num_by_image)):
                    wanted = [shard[block, part].astype(np.float32) for shard in queries]
                    found = [self.search(query, num_candidates + _SPARE)[1] for query in wanted]
                    if mine >= len(queries):
                        continue
                    rows = np.where(wanted[mine].any(axis=1, keepdims=True), found[mine], NONE)
                    candidates = self.datastore.hits(wanted[mine], rows, num_candidates)
                    limits = count, config.max_similarity, config.min_similarity
                    selected = selected.concat(
                        select_neighbors(candidates, group_rows[block], embeddings, selected, *limits)
                    )
                blocks.append((selected.rows, selected.scores))
                progress.update(len(embeddings))
        rows, scores = zip(*blocks, strict=True)
        return np.concatenate(rows), np.concatenate(scores)
