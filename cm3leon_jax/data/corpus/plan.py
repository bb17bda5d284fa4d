"""The plan of a corpus: all that its tokens depend on, so that a folder never holds parts of two corpora."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.document_tokenizer import DocumentTokenizer
from cm3leon_jax.data.corpus.manifest import CorpusPlan
from cm3leon_jax.data.corpus.pair_scores import LoadEncoder, load_scorer
from cm3leon_jax.data.corpus.prepared import FORMAT_VERSION
from cm3leon_jax.data.sources.reading import TaskReader, source_changes
from cm3leon_jax.data.sources.skipped import printable
from cm3leon_jax.errors import UserError
from cm3leon_jax.records import read_record


def check_splits(corpus: CorpusConfig, tasks: Sequence[TaskReader]) -> None:
    """Checks that the mixture has the config's two splits, and that they differ."""
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


def make_plan(
    corpus: CorpusConfig, tokens: DocumentTokenizer, tasks: Sequence[TaskReader], load_encoder: LoadEncoder
) -> dict[str, Any]:
    """All that the tokens on disk depend on."""
    vocabulary, image_tokenizer = tokens.vocabulary, tokens.image_tokenizer
    is_cut = tokens.max_length is not None and any(task.min_images is not None for task in tasks)
    if is_cut and tokens.max_length is not None and tokens.image_segment_length > tokens.max_length:
        raise UserError(
            f"documents are cut into parts of at most {tokens.max_length:,} tokens, which hold no image of "
            f"{image_tokenizer.config.image_length:,} codes: raise config.corpus.max_document_length, or "
            "config.batch.sequence_length where that is None"
        )
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
        **({"max_document_length": tokens.max_length} if is_cut else {}),
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
        "curation": _curation(corpus, tasks, load_encoder),
        "squaring": tokens.squaring.description(),
        "sampled captions": ", ".join(task.name for task in tasks if task.is_sampled),
        "sources": {task.name: provenance for task in tasks if (provenance := task.provenance())},
    }


def check_plan(path: Path, plan: dict[str, Any], tasks: Sequence[TaskReader]) -> None:
    if not (path / "plan.json").exists():
        return
    fix = "delete that folder and run `cm3leon prepare` again"
    plan_then = read_record(path / "plan.json", "the plan of the corpus", CorpusPlan, fix)
    found = _identity(plan_then)
    for name, now in _identity(plan).items():
        # An older plan lacks a description, for which the default is meant.
        if (was := found.get(name) or "") != (now or ""):
            raise UserError(
                f"the corpus {path} was prepared with another {name} ({was}, now it is {now}): "
                "delete that folder, or choose another config.corpus.path"
            )
    check_sources(plan_then.get("sources", {}), tasks, path)


def check_sources(stored: dict[str, Any], tasks: Sequence[TaskReader], path: Path) -> None:
    """Refuses a corpus of another state of its sources than what is stored of each task by name."""
    for task in tasks:
        if changes := source_changes(stored.get(task.name, {}), task.provenance()):
            files = task.changed_since((path / "plan.json").stat().st_mtime)
            changed = f"; changed since then: {listed(files)}" if files else ""
            hint = ", or, where only copies were made, set config.corpus.folder.compare_times=False"
            raise UserError(
                f"the corpus {path} was prepared from another state of the task {task.name} ({changes}{changed}): "
                "delete that folder to prepare it again, or choose another config.corpus.path"
                f"{hint if 'times' in changes else ''}"
            )


def _curation(corpus: CorpusConfig, tasks: Sequence[TaskReader], load_encoder: LoadEncoder) -> str:
    """What the config asks of documents; empty if nothing."""
    asked = {task.name: description for task in tasks if (description := task.curator.description())}
    if corpus.duplicates.any:
        asked["duplicates"] = json.dumps(asdict(corpus.duplicates))
    if any(task.curator.min_clip_score is not None for task in tasks):
        asked["encoder"] = load_scorer(load_encoder).fingerprint
    return "; ".join(f"{name}: {description}" for name, description in asked.items())


def _identity(plan: dict[str, Any]) -> dict[str, Any]:
    """Readable names of the plan's values, each with what tells it from another."""
    return {
        name.replace("_", " "): value.get("fingerprint") if isinstance(value, dict) else value
        for name, value in plan.items()
        if name != "sources"
    }


def listed(names: Sequence[str]) -> str:
    """The first of some names, as they can be printed."""
    return ", ".join([*map(printable, names[:5]), *(["..."] if len(names) > 5 else [])])
