"""Finds the neighbors of every document of a prepared corpus: vectors, datastore, lists, manifest.

Several processes share the vectors and the lists, shard by shard. Started again, they make only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float16

from cm3leon_jax.data.corpus import neighbors
from cm3leon_jax.data.corpus.array_files import open_arrays, read_files_record
from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.document_tokenizer import DocumentTokenizer
from cm3leon_jax.data.corpus.dropped import find_dropped
from cm3leon_jax.data.corpus.manifest import NeighborsPlan
from cm3leon_jax.data.corpus.plan import check_sources
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.data.sources.reading import open_mixture
from cm3leon_jax.distributed import all_processes, barrier, is_coordinator
from cm3leon_jax.encoders.base import Encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import remove, size_of, wait_for, write_json
from cm3leon_jax.records import read_record, write_record
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.retrieval.datastore import DATASTORE_RECORD, Datastore, write_datastore
from cm3leon_jax.retrieval.list_writer import ListWriter
from cm3leon_jax.retrieval.search import Search
from cm3leon_jax.retrieval.vectors import num_shards, vectors_record, write_vectors

log = logging.getLogger(__name__)

# Queries on which an approximate search is measured.
_NUM_MEASURED = 512


def find_neighbors(
    config: RetrievalConfig,
    source: CorpusConfig,
    corpus: PreparedCorpus,
    tokenizer: DocumentTokenizer,
    encoder: Encoder,
    mesh: Mesh,
) -> dict[str, Any]:
    """Writes CORPUS/retrieval and returns its manifest; every process of the run calls this.

    `corpus` was prepared from the documents that `source` names, by `tokenizer`.

    Raises:
      UserError: if the datastore is empty, or what is there was found with other settings.
    """
    folder, train_split = corpus.path / "retrieval", source.train_split
    plan = _plan(config, train_split, corpus, encoder)
    if manifest := _resume(folder, plan, corpus):
        return manifest
    tasks = {task.name: task for task in open_mixture(source)}
    sources = {name: task.get("source", {}) for name, task in corpus.manifest["tasks"].items()}
    check_sources(sources, tuple(tasks.values()), corpus.path)
    dropped = find_dropped(source, corpus.path, tuple(tasks.values()), tokenizer, lambda: encoder)
    for number, (task, split) in enumerate(_splits(corpus)):
        kept = dropped[task, split]
        write_vectors(corpus, tasks[task], split, kept, tokenizer, encoder, config, first_process=number)
    for record in _records(corpus, vectors_record):
        wait_for(record)
    documents = neighbors.DatastoreDocuments(corpus, tuple(plan["datastore"]), train_split)
    if is_coordinator() and not (folder / DATASTORE_RECORD).exists():
        write_datastore(corpus, documents, train_split, config.both_modalities)
    wait_for(folder / DATASTORE_RECORD)
    datastore = Datastore.open(folder)
    search = Search(datastore.vectors, mesh, config.search, config.search_recall)
    writer = ListWriter(corpus, documents, datastore, search, config, train_split)
    for task, split in _splits(corpus):
        writer.write(task, split)
    for record in _records(corpus, neighbors.lists_record):
        wait_for(record)
    manifest = plan | {
        "num_rows": len(datastore.vectors),
        "neighbors": {f"{task}/{split}": _list_counts(task, split, corpus) for task, split in _splits(corpus)},
        "files": read_files_record(folder / DATASTORE_RECORD, "run `cm3leon prepare` again"),
    }
    if config.search == "approximate":
        manifest["measured_recall"] = _measured_recall(datastore.vectors, search, mesh, config.num_candidates)
    if is_coordinator():
        write_record(folder / "manifest.json", manifest)
    wait_for(folder / "manifest.json")
    return neighbors.read_neighbors_manifest(folder)


def _resume(folder: Path, plan: dict[str, Any], corpus: PreparedCorpus) -> dict[str, Any] | None:
    """Refuses what was found by another plan; returns the manifest if nothing is missing."""
    if is_coordinator():
        _drop_incomplete(folder, corpus)
    barrier("records of arrays without their files are gone")
    if all_processes((folder / "manifest.json").exists()):
        manifest = neighbors.read_neighbors_manifest(folder)
        _check_same_plan(folder, manifest, plan, corpus)
        if is_coordinator():
            log.info(f"the neighbors {folder} are complete: nothing to do")
        return manifest
    if (folder / "plan.json").exists():
        fix = f"delete {folder} and run `cm3leon prepare` again"
        found = read_record(folder / "plan.json", "the plan of the neighbors", NeighborsPlan, fix)
        _check_same_plan(folder, found, plan, corpus)
    if is_coordinator():
        write_json(folder / "plan.json", plan)
    return None


def neighbor_summary(manifest: dict[str, Any]) -> str:
    """Formats one line per task and split: how many of its documents have neighbors."""
    lines = [f"datastore of {manifest['num_rows']:,} documents ({', '.join(manifest['datastore'])})"]
    for name, found in manifest["neighbors"].items():
        per_document = found["num_neighbors"] / max(1, found["num_documents"])
        lines.append(
            f"{name}: {per_document:.2f} neighbors per document, mean score {found['mean_score']:.2f}; "
            f"{found['num_without']:,} of {found['num_documents']:,} documents have none"
        )
    if "measured_recall" in manifest:
        lines.append(f"approximate search found {manifest['measured_recall']:.1%} of what exact search finds")
    return "\n".join(lines)


def _measured_recall(vectors: Float16[np.ndarray, "rows dim"], search: Search, mesh: Mesh, count: int) -> float:
    """Measures which fraction of the `count` best rows a search finds, for a few hundred rows as queries."""
    rows = np.linspace(0, len(vectors) - 1, min(len(vectors), _NUM_MEASURED)).astype(np.int64)
    _, found = search(vectors[rows], count)
    _, exact = Search(vectors, mesh)(vectors[rows], count)
    num_hits = sum(len(set(a) & set(b) - {neighbors.NONE}) for a, b in zip(found.tolist(), exact.tolist(), strict=True))
    return num_hits / int((exact != neighbors.NONE).sum())


def _plan(config: RetrievalConfig, train_split: str, corpus: PreparedCorpus, encoder: Encoder) -> dict[str, Any]:
    """Collects all that the lists depend on."""
    plan = {
        "format_version": neighbors.RETRIEVAL_FORMAT,
        "encoder": encoder.fingerprint,
        "corpus": neighbors.documents_identity(corpus),
        "settings": neighbors.list_settings(config),
        "datastore": list(neighbors.datastore_tasks(config, corpus, train_split)),
    }
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    return plan | {"fingerprint": digest[:16]}


def _check_same_plan(folder: Path, found: dict[str, Any], plan: dict[str, Any], corpus: PreparedCorpus) -> None:
    neighbors.check_same_settings(folder, found, plan["settings"], corpus)
    if found["encoder"] != plan["encoder"]:
        raise UserError(
            f"the neighbors at {folder} were found with another encoder (fingerprint {found['encoder']}, this "
            f"one is {plan['encoder']}): delete {folder} and run `cm3leon prepare` again, or point "
            "config.encoder.path to the one they were found with"
        )


def _drop_incomplete(folder: Path, corpus: PreparedCorpus) -> None:
    """Deletes records of arrays whose files are missing, so that they are made again, and then the manifest."""
    records = [folder / DATASTORE_RECORD, *_records(corpus, vectors_record), *_records(corpus, neighbors.lists_record)]
    fix = "delete it and run `cm3leon prepare` again"
    for record in filter(Path.exists, records):
        if absent := [name for name in read_files_record(record, fix) if size_of(record.with_name(name)) is None]:
            log.info(f"{record.with_name(absent[0])} is missing: it is made again")
            remove(record)
    if not all(record.exists() for record in records):
        remove(folder / "manifest.json")


def _splits(corpus: PreparedCorpus) -> list[tuple[str, str]]:
    return [(name, split) for name, task in corpus.manifest["tasks"].items() for split in task["splits"]]


def _records(corpus: PreparedCorpus, record: Callable[[Path, int], Path]) -> list[Path]:
    return [
        record(corpus.path / "retrieval" / task / split, shard)
        for task, split in _splits(corpus)
        for shard in range(num_shards(corpus, task, split))
    ]


def _list_counts(task: str, split: str, corpus: PreparedCorpus) -> dict[str, Any]:
    folder = corpus.path / "retrieval" / task / split
    counts, total_score, shards = np.zeros(3, np.int64), 0.0, []
    for shard in range(num_shards(corpus, task, split)):
        record = neighbors.lists_record(folder, shard)
        names = neighbors.neighbors_file(folder, shard).name, neighbors.scores_file(folder, shard).name
        kept, scores = open_arrays(record, names, f"delete {record} and run `cm3leon prepare` again")
        shards.append(read_files_record(record, ""))
        is_there = kept != neighbors.NONE
        counts += len(kept), (~is_there.any(axis=1)).sum(), is_there.sum()
        total_score += float(scores[is_there].sum(dtype=np.float64))
    found = dict(zip(("num_documents", "num_without", "num_neighbors"), counts.tolist(), strict=True))
    return found | {"mean_score": total_score / max(1, found["num_neighbors"]), "shards": shards}
