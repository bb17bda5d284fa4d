"""Turns a seqio mixture into a prepared corpus: token shards, offsets and a manifest (see prepared.py).

A shard is a fixed range of examples, so its files are the same whoever writes them: several processes take turns, and
an interrupted run, started again, writes what is missing. Documents that cannot be read are counted in manifest.json.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import cm3leon_jax
from cm3leon_jax.data.corpus.alternatives import groups_file
from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.document_tokenizer import DocumentTokenizer
from cm3leon_jax.data.corpus.dropped import DroppedExamples, find_dropped
from cm3leon_jax.data.corpus.instructions import fields_file, templates_file
from cm3leon_jax.data.corpus.manifest import SkippedCounts
from cm3leon_jax.data.corpus.pair_scores import LoadEncoder
from cm3leon_jax.data.corpus.plan import check_plan, check_splits, listed, make_plan
from cm3leon_jax.data.corpus.prepared import checksums_file, offsets_file, read_manifest, token_dtype, tokens_file
from cm3leon_jax.data.corpus.shard_writer import (
    NUM_LISTED,
    ShardWriter,
    TokenFile,
    read_shard_record,
    shard_metadata_file,
)
from cm3leon_jax.data.sources.reading import (
    ShardSlice,
    SkippedExample,
    TaskReader,
    check_num_skipped,
    open_mixture,
    skipped_report,
)
from cm3leon_jax.distributed import all_processes, barrier, is_coordinator
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import remove, size_of, wait_for, write_json
from cm3leon_jax.records import write_record
from cm3leon_jax.threads import mapped_ahead

# Until what the first process wrote must be seen by the others.
_SHARED_WITHIN = 60.0

log = logging.getLogger(__name__)

_COUNTS = ("num_documents", "num_tokens", "num_text_tokens", "num_image_tokens")


def write_token_shards(corpus: CorpusConfig, tokens: DocumentTokenizer, load_encoder: LoadEncoder) -> dict[str, Any]:
    """Writes the missing shards of `corpus.path`; returns the manifest. All processes call this, and wait for all.

    Raises:
      UserError: if the mixture cannot be read, has no such splits or too much that is skipped, or if the folder holds a
        corpus of another one, of another state of its sources, or of other tokenizers.
    """
    path = Path(corpus.path)
    tasks = open_mixture(corpus)
    check_splits(corpus, tasks)
    plan = make_plan(corpus, tokens, tasks, load_encoder)
    check_plan(path, plan, tasks)
    if is_coordinator():
        _drop_incomplete(path, token_dtype(tokens.vocabulary.size))
    barrier("records of shards without their files are gone")
    if all_processes((path / "manifest.json").exists()):
        again = (
            "its folder has to be deleted to prepare it again, its manifest.json to take in new rates of the mixture"
        )
        log.info(f"the corpus {path} is complete: nothing to do ({again})")
        return read_manifest(path)
    if is_coordinator():
        if report := skipped_report(tasks):
            log.info(report)
        write_json(path / "plan.json", plan)
    wait_for(path / "plan.json", _SHARED_WITHIN)
    # Each process has read the sources on its own.
    check_plan(path, plan, tasks)
    begun = time.time()
    dropped = find_dropped(corpus, path, tasks, tokens, load_encoder)
    manifest = _write_splits(corpus, path, plan, tasks, tokens, dropped)
    wait_for(path / "manifest.json")
    if is_coordinator():
        log.info(f"the corpus is at {path}")
        _log_edits(tasks, begun)
    return manifest


def _log_edits(tasks: Sequence[TaskReader], since: float) -> None:
    for task in tasks:
        if changed := task.changed_since(since):
            log.info(
                f"{task.name}: {len(changed):,} files were changed while this ran ({listed(changed)}); the corpus is "
                "of the folder as it was before, without images that were changed before they were read"
            )


def _drop_incomplete(path: Path, dtype: np.dtype) -> None:
    """Forgets shards that lack a file or some tokens, and a manifest that lists them: they are written again."""
    for record in sorted(path.glob("*/*/shard-*.json")):
        folder, number = record.parent, int(record.stem.removeprefix("shard-"))
        entry = read_shard_record(record)["files"]
        tokens, size = tokens_file(folder, number), entry["num_tokens"] * dtype.itemsize
        files = [tokens, offsets_file(folder, number), checksums_file(folder, number)]
        if "instructions" in entry:
            files += [templates_file(folder, number), fields_file(folder, number)]
        if "groups" in entry:
            files.append(groups_file(folder, number))
        absent = [file for file in files if size_of(file) is None]
        if absent or size_of(tokens) != size:
            log.info(f"{(absent or [tokens])[0]} is missing or cut: its shard is written again")
            remove(record)
    if not (path / "manifest.json").exists():
        return
    for name, task in read_manifest(path)["tasks"].items():
        for split, entry in task["splits"].items():
            folder = path / name / split
            if not all(shard_metadata_file(folder, number).exists() for number in range(entry["num_shards"])):
                remove(path / "manifest.json")


def _write_splits(
    corpus: CorpusConfig,
    path: Path,
    plan: dict[str, Any],
    tasks: Sequence[TaskReader],
    tokens: DocumentTokenizer,
    dropped: Mapping[tuple[str, str], DroppedExamples],
) -> dict[str, Any]:
    splits = {
        task: [split for split in (corpus.train_split, corpus.held_out_split) if split in task.splits] for task in tasks
    }
    pairs = [(task, split) for task in tasks for split in splits[task]]
    for first, (task, split) in enumerate(pairs):
        _write_own_shards(task, split, path / task.name / split, tokens, corpus, first, dropped[task.name, split])
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
        _check_num_skipped(corpus, task, manifest["tasks"][task.name])
    if is_coordinator():
        write_record(path / "manifest.json", manifest)
    return manifest


def _check_num_skipped(corpus: CorpusConfig, task: TaskReader, entry: dict[str, Any]) -> None:
    splits = entry["splits"].values()
    by_reason = Counter(task.skipped().by_kind)
    for split in splits:
        by_reason.update(split["skipped"]["by_reason"])
    num_documents = sum(split["num_documents"] for split in splits)
    num_faults = sum(split["skipped"]["total"] - split["skipped"]["num_unwanted"] for split in splits)
    num_skipped = task.skipped().num_documents + num_faults
    skipped = [entry for split in splits for entry in split["skipped"]["first"]]
    first = [f"{entry.get('where', entry['index'])}: {entry['reason']}" for entry in skipped]
    kinds = ", ".join(f"{count:,} for {reason}" for reason, count in by_reason.most_common())
    check_num_skipped(corpus, task.name, num_documents, num_skipped, f"{kinds}; {listed(first)}")


def _write_own_shards(
    task: TaskReader,
    split: str,
    folder: Path,
    tokens: DocumentTokenizer,
    corpus: CorpusConfig,
    first: int,
    dropped: DroppedExamples,
) -> None:
    """Writes this process's missing shards of a split: every `process_count`-th, the first process's from `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    size, step = corpus.examples_per_shard, jax.process_count()
    own = range((jax.process_index() - first) % step, sys.maxsize, step)
    records = {int(file.stem.removeprefix("shard-")): read_shard_record(file) for file in folder.glob("shard-*.json")}
    end = next((number + 1 for number, record in records.items() if record["last"]), sys.maxsize)
    until_end = itertools.takewhile(lambda number: number < end, own)
    remaining = (number for number in until_end if number not in records)
    if (start := next(remaining, None)) is None:
        return

    def is_read(index: int) -> bool:
        """Whether an example is in a missing shard, or the one that says whether the split goes on after one."""
        return index % size == 0 or (index // size < end and index // size not in records)

    numbered = task.numbered(split, ShardSlice(size, start, step))
    examples = mapped_ahead(
        # While images are encoded, others are decoded in threads.
        tokens.decode,
        ((index, dropped.kept(index, document)) for index, document in numbered if is_read(index)),
        num_ahead=2 * tokens.batch_size,
    )
    shards = itertools.groupby(examples, key=lambda example: example[0] // size)
    with tqdm(
        total=_own_examples(task.num_examples(split), own, size),
        initial=sum(record["num_examples"] for number, record in records.items() if number in own),
        unit=" documents",
        desc=f"{task.name} {split}",
        disable=None if is_coordinator() else True,
    ) as progress:
        upcoming = next(shards, None)
        for number in itertools.chain([start], remaining):
            while upcoming is not None and upcoming[0] < number:
                upcoming = next(shards, None)
            # A split without documents still has a shard.
            if upcoming is None and number > 0:
                return
            num_samples = corpus.num_sample_images if number == 0 else 0
            with TokenFile(folder, number, token_dtype(tokens.vocabulary.size)) as file:
                shard = ShardWriter(folder, number, file, tokens, num_samples)
                for index, document in upcoming[1] if upcoming is not None and upcoming[0] == number else ():
                    is_named = isinstance(document, SkippedExample) or document.omitted
                    shard.add(index, document, task.where(split, index) if is_named else "")
                    progress.update()
                    if not progress.disable:
                        progress.set_postfix_str(f"{shard.num_tokens:,} tokens in shard {number}", refresh=False)
                upcoming = next(shards, None)
                shard.close(last=upcoming is None)


def _own_examples(num_examples: int | None, own: range, size: int) -> int | None:
    """How many of so many examples are in a process's shards."""
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
    omitted = _summed([record["omitted"] for record in records if "omitted" in record])
    return {
        **{name: sum(record[name] for record in records) for name in _COUNTS},
        "num_shards": len(records),
        "shards": [record["files"] for record in records],
        "skipped": _summed([record["skipped"] for record in records]),
        **({"omitted": omitted} if omitted["total"] else {}),
    }


def _summed(counts: list[SkippedCounts]) -> dict[str, Any]:
    by_reason: Counter[str] = Counter()
    for each in counts:
        by_reason.update(each["by_reason"])
    first = [entry for each in counts for entry in each["first"]][:NUM_LISTED]
    return {
        "total": by_reason.total(),
        "num_unwanted": sum(each.get("num_unwanted", 0) for each in counts),
        "by_reason": dict(sorted(by_reason.items())),
        "first": first,
    }


def summary(manifest: dict[str, Any]) -> str:
    """A table of what the corpus holds, a line for what was skipped, and one for what documents go on without."""
    header = ("task", "split", "rate", "documents", "text tokens", "image tokens", "shards", "skipped")
    rows = [header]
    skipped, omitted = Counter[str](), Counter[str]()
    for name, task in manifest["tasks"].items():
        skipped.update(task.get("skipped", {}).get("by_reason", {}))
        for split, entry in task["splits"].items():
            counts = (entry["num_documents"], entry["num_text_tokens"], entry["num_image_tokens"], entry["num_shards"])
            total = entry["skipped"]["total"]
            rows.append((name, split, f"{task['rate']:g}", *(f"{count:,}" for count in (*counts, total))))
            skipped.update(entry["skipped"]["by_reason"])
            omitted.update(entry.get("omitted", {}).get("by_reason", {}))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{'<' if column < 2 else '>'}{width}}}" for column, width in enumerate(widths))
    lines = [line.format(*row) for row in rows]
    for what, reasons in (("skipped", skipped), ("left out of documents", omitted)):
        if reasons:
            listed_reasons = ", ".join(f"{count:,} for {reason}" for reason, count in sorted(reasons.items()))
            lines.append(f"{what} {reasons.total():,} ({listed_reasons}); the first are listed in manifest.json")
    return "\n".join(lines)
