"""The datastore: embeddings of the training documents that can be neighbors.

CORPUS/retrieval/datastore.npy    float16 [rows, dim]: the embeddings that are searched
CORPUS/retrieval/documents.npy    int64 [rows]: index of each row's document among those of the datastore's tasks
CORPUS/retrieval/datastore.json   the checksums of both
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int64

from cm3leon_jax.data.corpus.array_files import file_checksum, open_arrays, save_array, write_files_record
from cm3leon_jax.data.corpus.neighbors import NONE, DatastoreDocuments
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write
from cm3leon_jax.retrieval.selection import Hits
from cm3leon_jax.retrieval.vectors import document_embeddings, num_shards, open_vectors

DATASTORE_RECORD = "datastore.json"
_VECTORS, _DOCUMENTS = "datastore.npy", "documents.npy"


@dataclass(frozen=True)
class Datastore:
    """Embeddings that are searched, with the document of each."""

    vectors: Float16[np.ndarray, "rows dim"]
    # Ascending.
    documents: Int64[np.ndarray, "rows"]

    @classmethod
    def open(cls, folder: Path) -> Datastore:
        """Memory-maps what `write_datastore` wrote, after a check."""
        fix = f"delete {folder / DATASTORE_RECORD} and run `cm3leon prepare` again"
        return cls(*open_arrays(folder / DATASTORE_RECORD, (_VECTORS, _DOCUMENTS), fix))

    def hits(self, queries: Float32[np.ndarray, "n dim"], rows: Int64[np.ndarray, "n C"], count: int) -> Hits:
        """Keeps the best `count` of the rows that a search found for each query.

        Scores are computed again, because the rounding of a search depends on the number of devices. A float64 holds
        the sum of products of float16 numbers exactly, in whatever order they are added.
        """
        vectors = self.vectors[np.maximum(rows, 0)].astype(np.float32)
        scores = np.einsum("nd,ncd->nc", queries, vectors, dtype=np.float64).astype(np.float32)
        scores = np.where(rows == NONE, np.float32(-np.inf), scores)
        best = np.lexsort((rows, -scores))[:, :count]
        return Hits(
            np.take_along_axis(rows, best, axis=1),
            np.take_along_axis(scores, best, axis=1),
            np.take_along_axis(vectors, best[:, :, None], axis=1),
        )

    def rows_of(self, documents: Int64[np.ndarray, "n 2"]) -> Int64[np.ndarray, "n 2"]:
        """Where the rows of ranges of documents begin and end; not all of these need be searched."""
        return np.searchsorted(self.documents, documents).astype(np.int64)


def write_datastore(
    corpus: PreparedCorpus, documents: DatastoreDocuments, train_split: str, both_modalities: bool
) -> None:
    """Gathers the embeddings of all documents that can be neighbors: those with text and images, or with either."""
    folder = corpus.path / "retrieval"
    shards = [
        open_vectors(folder / task / train_split, shard)[0]
        for task in documents.tasks
        for shard in range(num_shards(corpus, task, train_split))
    ]
    has_modality = [(np.asarray(vectors) != 0).any(axis=2) for vectors in shards]
    is_searched = [has.all(axis=1) if both_modalities else has.any(axis=1) for has in has_modality]
    found = np.flatnonzero(np.concatenate(is_searched))
    if not len(found):
        condition = ", with text and image both (config.retrieval.both_modalities)" if both_modalities else ""
        raise UserError(
            f"the datastore is empty: none of {sum(map(len, shards)):,} documents of {', '.join(documents.tasks)} can "
            f"be a neighbor{condition}; name other tasks in config.retrieval.datastore_tasks"
        )
    with atomic_write(folder / _VECTORS) as temporary:
        shape = (len(found), shards[0].shape[-1])
        stored = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        start = 0
        for vectors, wanted in zip(shards, is_searched, strict=True):
            embeddings = document_embeddings(vectors[wanted])
            stored[start : start + len(embeddings)] = embeddings
            start += len(embeddings)
        stored.flush()
        del stored
    checksums = {
        _VECTORS: file_checksum(folder / _VECTORS),
        _DOCUMENTS: save_array(folder / _DOCUMENTS, found.astype(np.int64)),
    }
    write_files_record(folder / DATASTORE_RECORD, checksums)
