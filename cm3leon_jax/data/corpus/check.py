"""The full check of a prepared corpus: every byte of its shards, neighbor lists and vectors is read.

Training checks what it opens and what it reads; this finds damage before it does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cm3leon_jax.data.corpus.array_files import check_file, read_files_record
from cm3leon_jax.data.corpus.neighbors import NeighborLists, read_neighbors_manifest
from cm3leon_jax.data.corpus.prepared import PreparedCorpus, TaskSplit, fix_shard, token_dtype, tokens_file
from cm3leon_jax.errors import UserError
from cm3leon_jax.vocabulary import Vocabulary

_NUM_SHOWN = 5


def check_corpus(corpus: PreparedCorpus, vocabulary: Vocabulary, train_split: str) -> str:
    """Reads all of a corpus and of its neighbor lists; a `UserError` names the files that are damaged."""
    checks, faults = list(_checks(corpus, vocabulary, train_split)), []
    for check in tqdm(checks, unit=" shards", desc="check", disable=None):
        try:
            check()
        except UserError as error:
            faults.append(str(error))
    if faults:
        more = f"; and {len(faults) - _NUM_SHOWN:,} more" if len(faults) > _NUM_SHOWN else ""
        raise UserError("; ".join(faults[:_NUM_SHOWN]) + more)
    return f"{corpus.path}: all of {len(checks):,} shards and lists are as they were written"


def _checks(corpus: PreparedCorpus, vocabulary: Vocabulary, train_split: str) -> Iterator[Callable[[], None]]:
    for name, task in corpus.manifest["tasks"].items():
        for split, entry in task["splits"].items():
            for shard, files in enumerate(entry["shards"]):
                yield functools.partial(_check_shard, corpus.path / name / split, shard, files, vocabulary)
    folder = corpus.path / "retrieval"
    if not (folder / "manifest.json").exists():
        return
    for record in sorted(folder.rglob("*.json")):
        if record.name not in ("manifest.json", "plan.json"):
            yield functools.partial(_check_files, record)
    yield functools.partial(_check_lists, corpus, train_split)


def _check_shard(folder: Path, shard: int, files: dict[str, Any], vocabulary: Vocabulary) -> None:
    file = tokens_file(folder, shard)
    check_file(file, files["tokens"], fix_shard(file))
    # Alone it would be shard 0.
    split = TaskSplit(folder, [files], token_dtype(vocabulary.size), first_shard=shard)  # type: ignore[list-item]
    for index in range(split.num_documents):
        ids = split.stored(index, recheck=True)
        if len(ids) and int(ids.max()) >= vocabulary.size:
            raise UserError(
                f"{file} holds the id {int(ids.max())}, the vocabulary {vocabulary.size}: {fix_shard(file)}"
            )


def _check_files(record: Path) -> None:
    fix = f"delete {record} and run `cm3leon prepare` again"
    for name, checksum in read_files_record(record, fix).items():
        check_file(record.with_name(name), checksum, "delete it and run `cm3leon prepare` again")


def _check_lists(corpus: PreparedCorpus, train_split: str) -> None:
    folder = corpus.path / "retrieval"
    manifest = read_neighbors_manifest(folder)
    lists = NeighborLists(corpus, manifest, train_split)
    for name in manifest["neighbors"]:
        lists.of_split(*name.split("/", 1))
    for name, checksum in manifest["files"].items():
        check_file(folder / name, checksum, f"delete {folder} and run `cm3leon prepare` again")
