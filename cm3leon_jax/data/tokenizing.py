"""Turns a seqio mixture into a prepared corpus: token shards, offsets and a manifest (see data/corpus.py).

Started again, an interrupted run goes on at the first shard that is missing. Documents that cannot be read are left
out, counted, and listed in manifest.json.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

import cm3leon_jax
from cm3leon_jax.config import CorpusConfig
from cm3leon_jax.data.corpus import FORMAT_VERSION
from cm3leon_jax.data.reading import Malformed, TaskReader, open_mixture
from cm3leon_jax.data.shard_writer import NUM_LISTED, DocumentTokenizer, OpenedDocument, ShardWriter, record_file
from cm3leon_jax.documents import Document
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_json, write_json
from cm3leon_jax.image_tokenizer.codec import ImageTokenizer
from cm3leon_jax.vocabulary import Vocabulary

_COUNTS = ("num_documents", "num_tokens", "num_text_tokens", "num_image_tokens")


def write_token_shards(corpus: CorpusConfig, tokens: DocumentTokenizer) -> dict[str, Any]:
    """Writes the shards of `corpus.path` that are missing; returns the corpus's manifest.

    Raises:
      UserError: if the mixture cannot be read, or the folder holds a corpus of another one or of other tokenizers.
    """
    path = Path(corpus.path)
    tasks = open_mixture(corpus)
    plan = _plan(corpus, tokens.vocabulary, tokens.image_tokenizer, tasks)
    _check_plan(path, plan)
    if (path / "manifest.json").exists():
        print(
            f"the corpus {path} is complete: nothing to do (its folder has to be deleted to prepare it again, "
            "its manifest.json to take in new rates of the mixture)"
        )
        return read_json(path / "manifest.json", "the corpus manifest")
    write_json(path / "plan.json", plan)
    manifest = _write_splits(corpus, path, plan, tasks, tokens)
    print(f"the corpus is at {path}")
    return manifest


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


def _check_plan(path: Path, plan: dict[str, Any]) -> None:
    if not (path / "plan.json").exists():
        return
    found = _identity(read_json(path / "plan.json", "the plan of the corpus"))
    for name, now in _identity(plan).items():
        if (was := found.get(name)) != now:
            raise UserError(
                f"the corpus {path} was prepared with another {name} ({was}, now it is {now}): "
                "delete that folder, or choose another config.corpus.path"
            )


def _identity(plan: dict[str, Any]) -> dict[str, Any]:
    """Readable names of the plan's values, each with what tells it from another."""
    parts = {name: value for name, value in plan.items() if name != "sources"}
    return {
        name.replace("_", " "): value["fingerprint"] if isinstance(value, dict) else value
        for name, value in parts.items()
    } | {
        f"{name} of the task {task}": value
        for task, provenance in plan.get("sources", {}).items()
        for name, value in provenance.items()
    }


def _write_splits(
    corpus: CorpusConfig,
    path: Path,
    plan: dict[str, Any],
    tasks: Sequence[TaskReader],
    tokens: DocumentTokenizer,
) -> dict[str, Any]:
    manifest: dict[str, Any] = {
        "created_by": f"cm3leon_jax {cm3leon_jax.__version__}",
        **{name: value for name, value in plan.items() if name != "sources"},
        "tasks": {},
    }
    for task in tasks:
        splits = [split for split in (corpus.train_split, corpus.held_out_split) if split in task.splits]
        manifest["tasks"][task.name] = {
            "rate": task.rate,
            "source": plan["sources"].get(task.name, {}),
            "splits": {split: _write_split(task, split, path / task.name / split, tokens, corpus) for split in splits},
        }
    if not any(task["splits"].get(corpus.train_split, {}).get("num_documents") for task in manifest["tasks"].values()):
        raise UserError(
            f"config.corpus.mixture {corpus.mixture!r} has no readable documents in its split {corpus.train_split!r}: "
            f"see the reasons in {path}/*/{corpus.train_split}/shard-*.json, or name another config.corpus.train_split"
        )
    write_json(path / "manifest.json", manifest)
    return manifest


def _write_split(
    task: TaskReader, split: str, folder: Path, tokens: DocumentTokenizer, corpus: CorpusConfig
) -> dict[str, Any]:
    """Writes the shards that are missing; returns the split's entry in the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(".*.partial"):
        left_over.unlink()
    records = _complete_shards(folder)
    if not records or not records[-1]["last"]:
        with tqdm(
            total=task.num_examples(split), unit=" documents", desc=f"{task.name} {split}", disable=None
        ) as progress:
            start = sum(record["num_examples"] for record in records)
            progress.update(start)
            documents = _ahead(tokens.open, task.documents(split, start), depth=2 * tokens.batch_size)
            examples = enumerate(documents, start)
            example = next(examples, None)
            while not records or example is not None:
                num_pictures = sum(record["num_pictures"] for record in records)
                with ShardWriter(folder, len(records), tokens, num_pictures, corpus.num_sample_pictures) as shard:
                    while example is not None and shard.num_tokens < corpus.tokens_per_shard:
                        shard.add(*example)
                        progress.update()
                        if not progress.disable:
                            progress.set_postfix_str(
                                f"{shard.num_tokens:,} tokens in shard {len(records)}", refresh=False
                            )
                        example = next(examples, None)
                    records.append(shard.close(last=example is None))
    return _split_entry(records)


def _complete_shards(folder: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    while (file := record_file(folder, len(records))).exists():
        records.append(read_json(file, "the record of a shard"))
    return records


def _split_entry(records: list[dict[str, Any]]) -> dict[str, Any]:
    by_reason: Counter[str] = Counter()
    for record in records:
        by_reason.update(record["skipped"]["by_reason"])
    listed = [entry for record in records for entry in record["skipped"]["first"]]
    return {
        **{name: sum(record[name] for record in records) for name in _COUNTS},
        "num_shards": len(records),
        "skipped": {
            "total": by_reason.total(),
            "by_reason": dict(sorted(by_reason.items())),
            "first": listed[:NUM_LISTED],
        },
    }


def _ahead(
    function: Callable[[Document | Malformed], OpenedDocument | Malformed],
    documents: Iterable[Document | Malformed],
    depth: int,
) -> Iterator[OpenedDocument | Malformed]:
    """Maps in order, in threads, at most `depth` documents ahead: pictures are opened while others are encoded."""
    running: deque[Future[OpenedDocument | Malformed]] = deque()
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        try:
            for document in documents:
                running.append(threads.submit(function, document))
                if len(running) > depth:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def summary(manifest: dict[str, Any]) -> str:
    """A table of what the corpus holds, and a line for what was left out."""
    header = ("task", "split", "rate", "documents", "text tokens", "image tokens", "shards", "skipped")
    rows = [header]
    skipped: Counter[str] = Counter()
    for name, task in manifest["tasks"].items():
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
        lines.append(f"skipped {skipped.total():,} documents ({reasons}); the first are listed in manifest.json")
    return "\n".join(lines)
