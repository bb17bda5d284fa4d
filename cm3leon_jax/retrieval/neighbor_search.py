"""Finds the neighbors of every document of a prepared corpus: vectors, search, choice, lists (data/neighbors.py).

Several processes take turns in making the vectors; they search together, and each chooses neighbors for shards of its
own. Started again, they make what is missing. Beside the lists there are then

    CORPUS/retrieval/memory.npy     float16 [rows, dim]: the vectors that are searched
    CORPUS/retrieval/places.npy     int64 [rows]: which document of the memory each of them is
    CORPUS/retrieval/memory.json    the checksums of both
    CORPUS/retrieval/index.faiss    the same vectors, for one query at a time (retrieval/index.py)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float16, Float32, Int64
from tqdm import tqdm

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.array_files import (
    file_checksum,
    open_arrays,
    read_files_record,
    save_array,
    write_files_record,
)
from cm3leon_jax.data.corpus.document_tokenizer import DocumentTokenizer
from cm3leon_jax.data.corpus.manifest import NeighborsPlan
from cm3leon_jax.data.corpus.neighbors import (
    NONE,
    RETRIEVAL_FORMAT,
    DatastoreDocuments,
    check_same_settings,
    datastore_tasks,
    documents_identity,
    list_settings,
    lists_record,
    neighbors_file,
    read_neighbors_manifest,
    save_lists,
    scores_file,
)
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.data.corpus.tokenizing import check_sources
from cm3leon_jax.data.sources.reading import TaskReader, open_mixture
from cm3leon_jax.distributed import all_processes, barrier, is_coordinator
from cm3leon_jax.encoders.base import Encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write, wait_for, write_json
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.records import read_record, write_record
from cm3leon_jax.retrieval import index
from cm3leon_jax.retrieval.choice import Candidates, Chosen, choose
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.retrieval.document_vectors import document_embeddings, open_vectors, vectors_record, write_vectors
from cm3leon_jax.retrieval.search import Search

MEMORY_RECORD, INDEX_FILE = "memory.json", "index.faiss"

# Documents whose neighbors are chosen at a time: their candidates' vectors are held together.
_BLOCK = 1024
# Rows that a search finds beyond the candidates: among nearly equal scores its rounding decides which rows it finds.
_SPARE = 15
# Queries on which an approximate search is measured.
_NUM_MEASURED = 512


def find_neighbors(
    config: Config, corpus: PreparedCorpus, tokens: DocumentTokenizer, encoder: Encoder
) -> dict[str, Any]:
    """Writes CORPUS/retrieval; returns its manifest. All processes of the run call this.

    Args:
      config: the run's.
      corpus: whose documents are looked at.
      tokens: what the corpus was tokenized with.
      encoder: makes the vectors.

    Raises:
      UserError: if the memory is empty, or what is there was found in another way.
    """
    folder = corpus.path / "retrieval"
    plan = _plan(config, corpus, encoder)
    if is_coordinator():
        _drop_incomplete(folder, corpus)
    barrier("records of arrays without their files are gone")
    if all_processes((folder / "manifest.json").exists()):
        manifest = read_neighbors_manifest(folder)
        _refuse_another_plan(folder, manifest, plan, corpus)
        if is_coordinator():
            print(f"the neighbors {folder} are complete: nothing to do")
        return manifest
    if (folder / "plan.json").exists():
        fix = f"delete {folder} and run `cm3leon prepare` again"
        found = read_record(folder / "plan.json", "the plan of the neighbors", NeighborsPlan, fix)
        _refuse_another_plan(folder, found, plan, corpus)
    if is_coordinator():
        write_json(folder / "plan.json", plan)

    readers = {task.name: task for task in open_mixture(config.corpus)}
    sources = {name: task.get("source", {}) for name, task in corpus.manifest["tasks"].items()}
    check_sources(sources, tuple(readers.values()), corpus.path)
    for turn, (task, split) in enumerate(_splits(corpus)):
        _write_vectors(readers[task], split, corpus, tokens, encoder, config.retrieval, turn)
    _wait_for_shards(corpus, vectors_record)
    documents = DatastoreDocuments(corpus, tuple(plan["memory"]), config.corpus.train_split)
    if is_coordinator():
        _write_memory(folder, corpus, documents, config)
    wait_for(folder / MEMORY_RECORD)
    memory = Memory.open(folder)
    mesh = make_mesh(config.mesh)
    search = Search(memory.vectors, mesh, config.retrieval.search, config.retrieval.search_recall)
    for task, split in _splits(corpus):
        _write_lists(task, split, corpus, documents, memory, search, config)
    _wait_for_shards(corpus, lists_record)
    measured: dict[str, float] = {}
    if config.retrieval.search == "approximate":
        recall = measured_recall(memory.vectors, search, mesh, config.retrieval.num_candidates)
        measured = {"measured_recall": recall}
    if is_coordinator():
        manifest = plan | {
            "num_rows": len(memory.vectors),
            "index": index.build(memory.vectors, folder / INDEX_FILE),
            "neighbors": {f"{task}/{split}": _list_counts(task, split, corpus) for task, split in _splits(corpus)},
            "files": read_files_record(folder / MEMORY_RECORD, "run `cm3leon prepare` again")
            | {INDEX_FILE: file_checksum(folder / INDEX_FILE)},
            **measured,
        }
        write_record(folder / "manifest.json", manifest)
    wait_for(folder / "manifest.json")
    return read_neighbors_manifest(folder)


def neighbor_summary(manifest: dict[str, Any]) -> str:
    """A line a task and split: how many of its documents have neighbors."""
    lines = [f"memory of {manifest['num_rows']:,} documents ({', '.join(manifest['memory'])})"]
    for name, found in manifest["neighbors"].items():
        per_document = found["num_neighbors"] / max(1, found["num_documents"])
        lines.append(
            f"{name}: {per_document:.2f} neighbors a document, mean score {found['mean_score']:.2f}; "
            f"{found['num_without']:,} of {found['num_documents']:,} documents have none"
        )
    if "measured_recall" in manifest:
        lines.append(f"approximate search found {manifest['measured_recall']:.1%} of what exact search finds")
    return "\n".join(lines)


def measured_recall(vectors: Float16[np.ndarray, "rows dim"], search: Search, mesh: Mesh, count: int) -> float:
    """The share of the `count` best of a few hundred vectors that a search finds, exact search being right."""
    rows = np.linspace(0, len(vectors) - 1, min(len(vectors), _NUM_MEASURED)).astype(np.int64)
    _, found = search(vectors[rows], count)
    _, right = Search(vectors, mesh)(vectors[rows], count)
    hits = [len(set(mine) & set(theirs) - {NONE}) for mine, theirs in zip(found.tolist(), right.tolist(), strict=True)]
    return sum(hits) / int((right != NONE).sum())


class Memory:
    """The vectors that are searched, and which document each of them is."""

    def __init__(self, vectors: Float16[np.ndarray, "rows dim"], places: Int64[np.ndarray, "rows"]) -> None:
        self.vectors, self.places = vectors, places

    @classmethod
    def open(cls, folder: Path) -> Memory:
        """Maps what `prepare` wrote, after it was checked."""
        fix = f"delete {folder / MEMORY_RECORD} and run `cm3leon prepare` again"
        vectors, places = open_arrays(folder / MEMORY_RECORD, ("memory.npy", "places.npy"), fix)
        return cls(vectors, places)

    def candidates(
        self, queries: Float32[np.ndarray, "n dim"], rows: Int64[np.ndarray, "n C"], count: int
    ) -> Candidates:
        """The best `count` of what a search found, with their vectors.

        They are scored anew, since how a search rounds depends on the number of devices. A float64 holds the sum of
        products of float16 numbers in whatever order they are added up.
        """
        vectors = self.vectors[np.maximum(rows, 0)].astype(np.float32)
        scores = np.einsum("nd,ncd->nc", queries, vectors, dtype=np.float64).astype(np.float32)
        scores = np.where(rows == NONE, np.float32(-np.inf), scores)
        best = np.lexsort((rows, -scores))[:, :count]
        return Candidates(
            np.take_along_axis(rows, best, axis=1),
            np.take_along_axis(scores, best, axis=1),
            np.take_along_axis(vectors, best[:, :, None], axis=1),
        )

    def rows_of(self, places: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        """Where documents of the memory lie among the vectors; -1 for one that is not searched."""
        rows = np.searchsorted(self.places, places)
        found = self.places[np.minimum(rows, len(self.places) - 1)] == places
        return np.where(found, rows, NONE).astype(np.int64)


def _plan(config: Config, corpus: PreparedCorpus, encoder: Encoder) -> dict[str, Any]:
    """All that the lists depend on."""
    plan = {
        "format_version": RETRIEVAL_FORMAT,
        "encoder": encoder.fingerprint,
        "corpus": documents_identity(corpus),
        "settings": list_settings(config.retrieval),
        "memory": list(datastore_tasks(config.retrieval, corpus, config.corpus.train_split)),
    }
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    return plan | {"fingerprint": digest[:16]}


def _refuse_another_plan(folder: Path, found: dict[str, Any], plan: dict[str, Any], corpus: PreparedCorpus) -> None:
    check_same_settings(folder, found, plan["settings"], corpus)
    if found["encoder"] != plan["encoder"]:
        raise UserError(
            f"the neighbors at {folder} were found with another encoder (fingerprint {found['encoder']}, this "
            f"one is {plan['encoder']}): delete {folder} and run `cm3leon prepare` again, or point "
            "config.encoder.path to the one they were found with"
        )


def _drop_incomplete(folder: Path, corpus: PreparedCorpus) -> None:
    """Forgets arrays that lack a file, and a manifest that tells of them: they are made again."""
    records = [folder / MEMORY_RECORD]
    for task, split in _splits(corpus):
        for shard in range(_num_shards(corpus, task, split)):
            records += [kind(folder / task / split, shard) for kind in (vectors_record, lists_record)]
    fix = "delete it and run `cm3leon prepare` again"
    for record in filter(Path.exists, records):
        if absent := [name for name in read_files_record(record, fix) if not record.with_name(name).exists()]:
            print(f"{record.with_name(absent[0])} is missing: it is made again")
            record.unlink()
    if not all(record.exists() for record in (*records, folder / INDEX_FILE)):
        (folder / "manifest.json").unlink(missing_ok=True)


def _splits(corpus: PreparedCorpus) -> list[tuple[str, str]]:
    return [(name, split) for name, task in corpus.manifest["tasks"].items() for split in task["splits"]]


def _write_vectors(
    reader: TaskReader,
    split: str,
    corpus: PreparedCorpus,
    tokens: DocumentTokenizer,
    encoder: Encoder,
    config: RetrievalConfig,
    turn: int,
) -> None:
    shards, folder = corpus.path / reader.name / split, corpus.path / "retrieval" / reader.name / split
    write_vectors(
        reader,
        split,
        _num_shards(corpus, reader.name, split),
        tokens,
        shards,
        folder,
        encoder,
        config.query_dropout,
        config.seed,
        corpus.manifest["examples_per_shard"],
        turn,
    )


def _wait_for_shards(corpus: PreparedCorpus, file: Callable[[Path, int], Path]) -> None:
    """Waits until all processes have written their shards of all tasks and splits."""
    for task, split in _splits(corpus):
        for shard in range(_num_shards(corpus, task, split)):
            wait_for(file(corpus.path / "retrieval" / task / split, shard))


def _num_shards(corpus: PreparedCorpus, task: str, split: str) -> int:
    return corpus.manifest["tasks"][task]["splits"][split]["num_shards"]


def _write_memory(folder: Path, corpus: PreparedCorpus, documents: DatastoreDocuments, config: Config) -> None:
    """Gathers the vectors of all documents that can be neighbors."""
    if (folder / MEMORY_RECORD).exists():
        return
    split = config.corpus.train_split
    places: list[np.ndarray] = []
    first = 0
    with atomic_write(folder / "memory.npy") as temporary:
        parts = []
        for task in documents.tasks:
            for shard in range(_num_shards(corpus, task, split)):
                vectors, _ = open_vectors(folder / task / split, shard)
                is_there = (np.asarray(vectors) != 0).any(axis=2)
                fits = is_there.all(axis=1) if config.retrieval.both_modalities else is_there.any(axis=1)
                places.append(first + np.flatnonzero(fits))
                parts.append((task, shard, fits))
                first += len(vectors)
        rows = np.concatenate(places)
        if not len(rows):
            both = ", with text and image both (config.retrieval.both_modalities)"
            raise UserError(
                f"the memory is empty: none of {first:,} documents of {', '.join(documents.tasks)} can be a "
                f"neighbor{both * config.retrieval.both_modalities}; "
                "name other tasks in config.retrieval.datastore_tasks"
            )
        dim = vectors.shape[-1]
        memory = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(len(rows), dim))
        start = 0
        for task, shard, fits in parts:
            vectors, _ = open_vectors(folder / task / split, shard)
            found = document_embeddings(vectors[fits])
            memory[start : start + len(found)] = found
            start += len(found)
        memory.flush()
        del memory
    checksums = {"memory.npy": file_checksum(folder / "memory.npy")}
    checksums["places.npy"] = save_array(folder / "places.npy", rows.astype(np.int64))
    write_files_record(folder / MEMORY_RECORD, checksums)


def _write_lists(
    task: str,
    split: str,
    corpus: PreparedCorpus,
    documents: DatastoreDocuments,
    memory: Memory,
    search: Search,
    config: Config,
) -> None:
    """Writes the lists of a task and split where they are missing, as many shards at a time as there are processes."""
    folder = corpus.path / "retrieval" / task / split
    first_place = documents.first_index(task) if split == config.corpus.train_split else None
    opened = [open_vectors(folder, shard) for shard in range(_num_shards(corpus, task, split))]
    vectors = [own for own, _ in opened]
    first_document = np.cumsum([0, *map(len, vectors)])
    # The search takes all processes, so they must agree on what it is for.
    missing = [shard for shard in range(len(vectors)) if not all_processes(lists_record(folder, shard).exists())]
    for start in range(0, len(missing), jax.process_count()):
        together = missing[start : start + jax.process_count()]
        queries = [opened[shard][1] for shard in together]
        shard = together[jax.process_index()] if jax.process_index() < len(together) else None
        if shard is None:
            # Fewer shards than processes are left: this one only takes part in the search.
            _chosen(vectors[0][:0], queries, np.zeros(0, np.int64), memory, search, config.retrieval)
            continue
        own = np.full(len(vectors[shard]), NONE, np.int64)
        if first_place is not None:
            own = memory.rows_of(first_place + first_document[shard] + np.arange(len(own)))
        what = f"neighbors {task} {split}"
        rows, scores = _chosen(vectors[shard], queries, own, memory, search, config.retrieval, what)
        places = np.where(rows == NONE, NONE, memory.places[np.maximum(rows, 0)])
        save_lists(folder, shard, places.astype(np.int64), scores)


def _list_counts(task: str, split: str, corpus: PreparedCorpus) -> dict[str, Any]:
    """The numbers of the lists of a task and split."""
    folder = corpus.path / "retrieval" / task / split
    num_documents = num_neighbors = num_without = 0
    total_score, shards = 0.0, []
    for shard in range(_num_shards(corpus, task, split)):
        record = lists_record(folder, shard)
        names = neighbors_file(folder, shard).name, scores_file(folder, shard).name
        places, scores = open_arrays(record, names, f"delete {record} and run `cm3leon prepare` again")
        shards.append(read_files_record(record, ""))
        has = places != NONE
        num_documents += len(places)
        num_neighbors += int(has.sum())
        num_without += int((~has.any(axis=1)).sum())
        total_score += float(scores[has].sum(dtype=np.float64))
    return {
        "num_documents": num_documents,
        "num_without": num_without,
        "num_neighbors": num_neighbors,
        "mean_score": total_score / max(1, num_neighbors),
        "shards": shards,
    }


def _chosen(
    vectors: Float16[np.ndarray, "n 2 dim"],
    queries: Sequence[Float16[np.ndarray, "_ 2 dim"]],
    own: Int64[np.ndarray, "n"],
    memory: Memory,
    search: Search,
    config: RetrievalConfig,
    what: str = "",
) -> tuple[Int64[np.ndarray, "n kept"], Float32[np.ndarray, "n kept"]]:
    """Rows and scores of the neighbors of a shard's documents: those found by text, then those found by images.

    Args:
      vectors: of the shard's documents.
      queries: of the shards of the first so many processes, which all search for together.
      own: rows of the shard's documents.
      memory: what is searched.
      search: finds.
      config: says how to choose.
      what: is shown while it goes on.
    """
    rows_and_scores = []
    mine = jax.process_index() if jax.process_index() < len(queries) else None
    disable = None if is_coordinator() else True
    with tqdm(total=len(vectors), l2_normalize=" documents", desc=what, disable=disable) as progress:
        for start in range(0, max(1, *map(len, queries)), _BLOCK):
            block = slice(start, start + _BLOCK)
            whole = document_embeddings(vectors[block])
            taken = Chosen.none(len(whole), whole.shape[1])
            for part, count in enumerate((config.num_by_text, config.num_by_image)):
                asked = [shard[block, part].astype(np.float32) for shard in queries]
                # One more than asked for, since a document finds itself.
                num_candidates = config.num_candidates + 1
                found = [search(query, num_candidates + _SPARE)[1] for query in asked]
                if mine is None:
                    continue
                rows = np.where(asked[mine].any(axis=1, keepdims=True), found[mine], NONE)
                candidates = memory.candidates(asked[mine], rows, num_candidates)
                taken = taken.and_then(
                    choose(candidates, own[block], whole, taken, count, config.max_similarity, config.min_similarity)
                )
            rows_and_scores.append((taken.rows, taken.scores))
            progress.update(len(whole))
    rows, scores = zip(*rows_and_scores, strict=True)
    return np.concatenate(rows), np.concatenate(scores)
