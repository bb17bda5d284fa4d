"""Turns a seqio mixture into a prepared corpus: token shards, offsets and a manifest (see data/corpus.py).

A shard is a fixed run of examples, so its files are the same whoever writes them: several processes take turns, and
started again, by as many processes or by others, an interrupted run writes the shards that are missing. Documents that
cannot be read are left out, counted, and listed in manifest.json.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import cm3leon_jax
from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.manifest import Plan
from cm3leon_jax.data.corpus.prepared import (
    FORMAT_VERSION,
    checksums_file,
    offsets_file,
    read_manifest,
    token_dtype,
    tokens_file,
)
from cm3leon_jax.data.corpus.shard_writer import (
    NUM_LISTED,
    DecodedDocument,
    DocumentTokenizer,
    ShardWriter,
    read_shard_record,
    shard_metadata_file,
)
from cm3leon_jax.data.sources.reading import (
    Share,
    SkippedExample,
    TaskReader,
    open_mixture,
    refuse_many_skipped,
    skipped_report,
    source_changes,
)
from cm3leon_jax.data.sources.skipped import printable
from cm3leon_jax.distributed import all_processes, barrier, is_coordinator
from cm3leon_jax.documents import Document
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import wait_for, write_json
from cm3leon_jax.image_tokenizers.base import ImageTokenizer
from cm3leon_jax.records import read_record, write_record
from cm3leon_jax.threads import mapped_ahead
from cm3leon_jax.vocabulary import Vocabulary

# Until what the first process wrote must be seen by the others.
_SHARED_WITHIN = 60.0

_COUNTS = ("num_documents", "num_tokens", "num_text_tokens", "num_image_tokens")


def write_token_shards(corpus: CorpusConfig, tokens: DocumentTokenizer) -> dict[str, Any]:
    """Writes the shards of `corpus.path` that are missing; returns the corpus's manifest.

    All processes of the run call this; it returns as soon as the shards of all of them are there.

    Raises:
      UserError: if the mixture cannot be read, has no such splits or too much that is skipped, or if the folder holds a
        corpus of another one, of another state of its sources, or of other tokenizers.
    """
    path = Path(corpus.path)
    tasks = open_mixture(corpus)
    _check_splits(corpus, tasks)
    plan = _plan(corpus, tokens.vocabulary, tokens.image_tokenizer, tasks)
    _check_plan(path, plan, tasks)
    if is_coordinator():
        _drop_incomplete(path, token_dtype(tokens.vocabulary.size))
    barrier("records of shards without their files are gone")
    if all_processes((path / "manifest.json").exists()):
        if is_coordinator():
            print(
                f"the corpus {path} is complete: nothing to do (its folder has to be deleted to prepare it again, "
                "its manifest.json to take in new rates of the mixture)"
            )
        return read_manifest(path)
    if is_coordinator():
        if report := skipped_report(tasks):
            print(report, flush=True)
        write_json(path / "plan.json", plan)
    wait_for(path / "plan.json", _SHARED_WITHIN)
    # Each process has read the sources on its own.
    _check_plan(path, plan, tasks)
    begun = time.time()
    manifest = _write_splits(corpus, path, plan, tasks, tokens)
    wait_for(path / "manifest.json")
    if is_coordinator():
        print(f"the corpus is at {path}")
        _tell_edits(tasks, begun)
    return manifest


def _check_splits(corpus: CorpusConfig, tasks: Sequence[TaskReader]) -> None:
    found = list(dict.fromkeys(split for task in tasks for split in task.splits))
    for name in ("train_split", "held_out_split"):
        if (split := getattr(corpus, name)) not in found:
            raise UserError(
                f"config.corpus.{name} is {split!r}, but {corpus.mixture!r} has no such split: its splits are "
                f"{', '.join(found)}"
            )
    if corpus.train_split == corpus.held_out_split:
        raise UserError(
            f"config.corpus.held_out_split is {corpus.held_out_split!r}, which is also config.corpus.train_split: "
            "nothing would be held out; name another split"
        )


def _tell_edits(tasks: Sequence[TaskReader], since: float) -> None:
    for task in tasks:
        if changed := task.changed_since(since):
            print(
                f"{task.name}: {len(changed):,} files were changed while this ran ({_some(changed)}); the corpus is of "
                "the folder as it was before, without images that were changed before they were read"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join([*map(printable, names[:5]), *(["..."] if len(names) > 5 else [])])


def _plan(
    corpus: CorpusConfig, vocabulary: Vocabulary, image_tokenizer: ImageTokenizer, tasks: Sequence[TaskReader]
) -> dict[str, Any]:
    """All that the tokens on disk depend on."""
    if vocabulary.num_image_codes != image_tokenizer.config.codebook_size:
        raise UserError(
            f"the vocabulary has {vocabulary.num_image_codes} image codes, the image tokenizer "
            f"{image_tokenizer.config.codebook_size}: run `cm3leon train-text-tokenizer` with "
            f"config.image_tokenizer.codebook_size={image_tokenizer.config.codebook_size}"
        )
    return {
        "format_version": FORMAT_VERSION,
        "mixture": corpus.mixture,
        "train_split": corpus.train_split,
        "held_out_split": corpus.held_out_split,
        "examples_per_shard": corpus.examples_per_shard,
        "vocabulary": {
            "fingerprint": vocabulary.fingerprint,
            "size": vocabulary.size,
            "num_text_tokens": vocabulary.num_text_tokens,
            "num_image_codes": vocabulary.num_image_codes,
            "num_masks": vocabulary.num_masks,
        },
        "image_tokenizer": {
            "fingerprint": image_tokenizer.fingerprint,
            "resolution": image_tokenizer.config.resolution,
            "channels": image_tokenizer.config.in_channels,
            "grid": image_tokenizer.config.grid,
            "image_length": image_tokenizer.config.image_length,
        },
        "sources": {task.name: provenance for task in tasks if (provenance := task.provenance())},
    }


def _check_plan(path: Path, plan: dict[str, Any], tasks: Sequence[TaskReader]) -> None:
    if not (path / "plan.json").exists():
        return
    fix = "delete that folder and run `cm3leon prepare` again"
    plan_then = read_record(path / "plan.json", "the plan of the corpus", Plan, fix)
    found = _identity(plan_then)
    for name, now in _identity(plan).items():
        if (was := found.get(name)) != now:
            raise UserError(
                f"the corpus {path} was prepared with another {name} ({was}, now it is {now}): "
                "delete that folder, or choose another config.corpus.path"
            )
    check_sources(plan_then.get("sources", {}), tasks, path)


def check_sources(stored: dict[str, Any], tasks: Sequence[TaskReader], path: Path) -> None:
    """Refuses to go on with a corpus of another state of its sources.

    Raises:
      UserError: if a task follows from something else than what is stored of it by name.
    """
    for task in tasks:
        if changes := source_changes(stored.get(task.name, {}), task.provenance()):
            files = task.changed_since((path / "plan.json").stat().st_mtime)
            changed = f"; changed since then: {_some(files)}" if files else ""
            hint = ", or, where only copies were made, set config.corpus.folder.compare_times=False"
            raise UserError(
                f"the corpus {path} was prepared from another state of the task {task.name} ({changes}{changed}): "
                "delete that folder to prepare it again, or choose another config.corpus.path"
                f"{hint if 'times' in changes else ''}"
            )


def _identity(plan: dict[str, Any]) -> dict[str, Any]:
    """Readable names of the plan's values, each with what tells it from another."""
    return {
        name.replace("_", " "): value.get("fingerprint") if isinstance(value, dict) else value
        for name, value in plan.items()
        if name != "sources"
    }


def _drop_incomplete(path: Path, dtype: np.dtype) -> None:
    """Forgets shards that lack a file or a part of their tokens, and a manifest that tells of them: they are redone."""
    for record in sorted(path.glob("*/*/shard-*.json")):
        folder, number = record.parent, int(record.stem.removeprefix("shard-"))
        tokens, size = tokens_file(folder, number), read_shard_record(record)["files"]["num_tokens"] * dtype.itemsize
        absent = [
            file for file in (tokens, offsets_file(folder, number), checksums_file(folder, number)) if not file.exists()
        ]
        if absent or tokens.stat().st_size != size:
            print(f"{(absent or [tokens])[0]} is missing or cut: its shard is written again")
            record.unlink()
    if not (path / "manifest.json").exists():
        return
    for name, task in read_manifest(path)["tasks"].items():
        for split, entry in task["splits"].items():
            folder = path / name / split
            if not all(shard_metadata_file(folder, number).exists() for number in range(entry["num_shards"])):
                (path / "manifest.json").unlink(missing_ok=True)


def _write_splits(
    corpus: CorpusConfig,
    path: Path,
    plan: dict[str, Any],
    tasks: Sequence[TaskReader],
    tokens: DocumentTokenizer,
) -> dict[str, Any]:
    splits = {
        task: [split for split in (corpus.train_split, corpus.held_out_split) if split in task.splits] for task in tasks
    }
    pairs = [(task, split) for task in tasks for split in splits[task]]
    for turn, (task, split) in enumerate(pairs):
        _write_own_shards(task, split, path / task.name / split, tokens, corpus, turn)
    manifest: dict[str, Any] = {
        "created_by": f"cm3leon_jax {cm3leon_jax.__version__}",
        **{name: value for name, value in plan.items() if name != "sources"},
        "tasks": {
            task.name: {
                "rate": task.rate,
                "source": plan["sources"].get(task.name, {}),
                "skipped": task.skipped().entry(),
                "splits": {split: _split_entry(_all_records(path / task.name / split)) for split in splits[task]},
            }
            for task in tasks
        },
    }
    if not any(task["splits"].get(corpus.train_split, {}).get("num_documents") for task in manifest["tasks"].values()):
        raise UserError(
            f"config.corpus.mixture {corpus.mixture!r} has no readable documents in its split {corpus.train_split!r}: "
            f"see the reasons in {path}/*/{corpus.train_split}/shard-*.json, or name another config.corpus.train_split"
        )
    for task in tasks:
        _refuse_many_skipped(corpus, task, manifest["tasks"][task.name])
    if is_coordinator():
        write_record(path / "manifest.json", manifest)
    return manifest


def _refuse_many_skipped(corpus: CorpusConfig, task: TaskReader, entry: dict[str, Any]) -> None:
    splits = entry["splits"].values()
    by_reason = Counter(task.skipped().by_kind)
    for split in splits:
        by_reason.update(split["skipped"]["by_reason"])
    num_documents = sum(split["num_documents"] for split in splits)
    num_skipped = task.skipped().num_documents + sum(split["skipped"]["total"] for split in splits)
    first = [f"{skipped.get('where', skipped['index'])}: {skipped['reason']}" for split in splits
             for skipped in split["skipped"]["first"]]  # fmt: skip
    kinds = ", ".join(f"{count:,} for {reason}" for reason, count in by_reason.most_common())
    refuse_many_skipped(corpus, task.name, num_documents, num_skipped, f"{kinds}; {_some(first)}")


def _write_own_shards(
    task: TaskReader, split: str, folder: Path, tokens: DocumentTokenizer, corpus: CorpusConfig, turn: int
) -> None:
    """Writes the missing shards that are this process's: of every so many one, counted from another for each `turn`."""
    folder.mkdir(parents=True, exist_ok=True)
    size, step = corpus.examples_per_shard, jax.process_count()
    own = range((jax.process_index() - turn) % step, sys.maxsize, step)
    records = {int(file.stem.removeprefix("shard-")): read_shard_record(file) for file in folder.glob("shard-*.json")}
    end = next((number + 1 for number, record in records.items() if record["last"]), sys.maxsize)

    def is_missing(number: int) -> bool:
        return number < end and number in own and number not in records

    first = next(number for number in own if number >= end or is_missing(number))
    if first >= end:
        return
    examples = _prefetch_decoded(
        tokens,
        (
            (index, document)
            for index, document in task.share(split, Share(size, first, step))
            if is_missing(index // size) or index % size == 0
        ),
    )
    done = sum(record["num_examples"] for number, record in records.items() if number in own)
    with tqdm(
        total=_own_examples(task.num_examples(split), own, size),
        initial=done,
        unit=" documents",
        desc=f"{task.name} {split}",
        disable=None if is_coordinator() else True,
    ) as progress:
        example = next(examples, None)
        for number in filter(is_missing, range(first, end, step)):
            while example is not None and example[0] < number * size:
                example = next(examples, None)
            if example is None and number > 0:
                return
            num_samples = corpus.num_sample_images if number == 0 else 0
            with ShardWriter(folder, number, tokens, num_samples) as shard:
                while example is not None and example[0] < (number + 1) * size:
                    index, document = example
                    if isinstance(document, SkippedExample):
                        document = replace(document, where=task.where(split, index))
                    shard.add(index, document)
                    progress.update()
                    if not progress.disable:
                        progress.set_postfix_str(f"{shard.num_tokens:,} tokens in shard {number}", refresh=False)
                    example = next(examples, None)
                shard.close(last=example is None)


def _own_examples(num_examples: int | None, own: range, size: int) -> int | None:
    """How many of so many examples lie in a process's shards."""
    if num_examples is None:
        return None
    return sum(min(size, num_examples - start) for start in range(own.start * size, num_examples, own.step * size))


def _all_records(folder: Path) -> list[dict[str, Any]]:
    """The records of all shards of a split, as soon as the other processes have written theirs."""
    records: list[dict[str, Any]] = []
    while not records or not records[-1]["last"]:
        records.append(read_shard_record(wait_for(shard_metadata_file(folder, len(records)))))
    return records


def _split_entry(records: list[dict[str, Any]]) -> dict[str, Any]:
    by_reason: Counter[str] = Counter()
    for record in records:
        by_reason.update(record["skipped"]["by_reason"])
    listed = [entry for record in records for entry in record["skipped"]["first"]]
    return {
        **{name: sum(record[name] for record in records) for name in _COUNTS},
        "num_shards": len(records),
        "shards": [record["files"] for record in records],
        "skipped": {
            "total": by_reason.total(),
            "by_reason": dict(sorted(by_reason.items())),
            "first": listed[:NUM_LISTED],
        },
    }


def _prefetch_decoded(
    tokens: DocumentTokenizer, examples: Iterable[tuple[int, Document | SkippedExample]]
) -> Iterator[tuple[int, DecodedDocument | SkippedExample]]:
    """Opens documents in order, in threads, a few batches ahead: while images are encoded, others are opened."""
    return mapped_ahead(tokens.open, examples, num_ahead=2 * tokens.batch_size)


def summary(manifest: dict[str, Any]) -> str:
    """A table of what the corpus holds, and a line for what was left out."""
    header = ("task", "split", "rate", "documents", "text tokens", "image tokens", "shards", "skipped")
    rows = [header]
    skipped: Counter[str] = Counter()
    for name, task in manifest["tasks"].items():
        skipped.update(task.get("skipped", {}).get("by_reason", {}))
        for split, entry in task["splits"].items():
            counts = (entry["num_documents"], entry["num_text_tokens"], entry["num_image_tokens"], entry["num_shards"])
            total = entry["skipped"]["total"]
            rows.append((name, split, f"{task['rate']:g}", *(f"{count:,}" for count in (*counts, total))))
            skipped.update(entry["skipped"]["by_reason"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    if skipped:
        reasons = ", ".join(f"{count:,} for {reason}" for reason, count in sorted(skipped.items()))
        lines.append(f"skipped {skipped.total():,} ({reasons}); the first are listed in manifest.json")
    return "\n".join(lines)
