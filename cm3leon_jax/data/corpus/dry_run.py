"""Estimates a corpus from some of its examples: what it would hold, what is dropped and why, its size, and the time."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.document_tokenizer import DecodedDocument, DocumentTokenizer
from cm3leon_jax.data.corpus.pair_scores import LoadEncoder, decoded_pairs, load_scorer, with_floor
from cm3leon_jax.data.corpus.plan import check_splits
from cm3leon_jax.data.corpus.prepared import token_dtype
from cm3leon_jax.data.corpus.shard_writer import ShardWriter, TokenFile
from cm3leon_jax.data.sources.reading import SkippedExample, TaskReader, open_mixture, skipped_report
from cm3leon_jax.data.sources.skipped import Skipped
from cm3leon_jax.documents import Document
from cm3leon_jax.errors import UserError
from cm3leon_jax.threads import mapped_ahead

# Bytes of a document in the files beside the tokens: its offset and its checksum.
_BYTES_PER_DOCUMENT = 12
# Examples of a task and split that are read at least.
_LEAST_READ = 16


@dataclass(frozen=True)
class SplitEstimate:
    """What was seen of a split; the counts are those of the examples that were read."""

    task: str
    split: str
    # None where the source does not say.
    num_examples: int | None
    num_read: int
    num_documents: int
    num_tokens: int
    num_text_tokens: int
    num_image_tokens: int
    num_bytes: int
    seconds: float
    skipped: Skipped

    def of_all(self, count: int | float) -> float:
        """What a count of the examples that were read is of all."""
        if not self.num_read or self.num_examples is None:
            return count
        return count * self.num_examples / self.num_read


def estimate_corpus(
    corpus: CorpusConfig, tokens: DocumentTokenizer, num_examples: int, load_encoder: LoadEncoder
) -> str:
    """Reads and encodes about so many examples of the mixture, writes nothing that stays, and reports on all of it.

    Raises:
      UserError: if the mixture cannot be read, has no such splits, or none of these examples is a document.
    """
    tasks = open_mixture(corpus)
    check_splits(corpus, tasks)
    splits = [
        (task, name) for task in tasks for name in (corpus.train_split, corpus.held_out_split) if name in task.splits
    ]
    shares = _shares([task.num_examples(name) for task, name in splits], num_examples)
    # The first call compiles.
    size = tokens.image_tokenizer.config
    tokens.encode([np.zeros((size.resolution, size.resolution, size.in_channels), np.uint8)] * tokens.batch_size)
    with tqdm(total=sum(shares), unit=" examples", desc="dry run", disable=None) as progress:
        found = [
            _estimate(task, name, tokens, count, load_encoder, progress)
            for (task, name), count in zip(splits, shares, strict=True)
        ]
    if not any(each.num_documents for each in found):
        reasons = "; ".join(each.skipped.in_one_line(300) for each in found if each.num_read)
        raise UserError(
            f"none of the first examples of {corpus.mixture!r} is a document ({reasons or 'there are none'})"
        )
    return _report(found, corpus, tasks)


def _shares(sizes: Sequence[int | None], num_examples: int) -> list[int]:
    """How many examples are read of each split: in proportion to their sizes, as far as these are known."""
    known = sum(size for size in sizes if size is not None)
    return [
        num_examples // len(sizes)
        if size is None
        else min(size, max(_LEAST_READ, round(num_examples * size / max(1, known))))
        for size in sizes
    ]


def _estimate(
    task: TaskReader, split: str, tokens: DocumentTokenizer, count: int, load_encoder: LoadEncoder, progress: tqdm
) -> SplitEstimate:
    dtype, skipped, started = token_dtype(tokens.vocabulary.size), Skipped(), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, TokenFile(Path(temporary), 0, dtype) as file:
        shard = ShardWriter(Path(temporary), 0, file, tokens, num_samples=0)
        examples = itertools.islice(task.spread(split, count), count)
        for index, document in _decoded(task, tokens, examples, load_encoder):
            if isinstance(document, SkippedExample):
                kind, _, detail = document.reason.partition(":")
                where = f"{task.where(split, index) or index}{f' ({detail.strip()})' if detail else ''}"
                skipped.add(kind, where, is_document=document.is_fault)
            shard.add(index, document)
            progress.update()
        record = shard.close(last=True)
    return SplitEstimate(
        task.name,
        split,
        task.num_examples(split),
        record["num_examples"],
        record["num_documents"],
        record["num_tokens"],
        record["num_text_tokens"],
        record["num_image_tokens"],
        record["num_tokens"] * dtype.itemsize + record["num_documents"] * _BYTES_PER_DOCUMENT,
        time.perf_counter() - started,
        skipped,
    )


def _decoded(
    task: TaskReader,
    tokens: DocumentTokenizer,
    examples: Iterable[tuple[int, Document | SkippedExample]],
    load_encoder: LoadEncoder,
) -> Iterator[tuple[int, DecodedDocument | SkippedExample]]:
    if (least := task.curator.min_clip_score) is None:
        return mapped_ahead(tokens.decode, examples, num_ahead=2 * tokens.batch_size)
    return with_floor(decoded_pairs(examples, tokens), load_scorer(load_encoder), least)


def _report(found: Sequence[SplitEstimate], corpus: CorpusConfig, tasks: Sequence[TaskReader]) -> str:
    header = ("task", "split", "examples", "read", "documents", "text tokens", "image tokens", "MiB", "minutes")
    rows: list[Sequence[str]] = [header]
    for each in found:
        counts: list[Any] = [each.num_documents, each.num_text_tokens, each.num_image_tokens, each.num_bytes / 2**20]
        totals = [f"{each.of_all(count):,.0f}" for count in counts]
        examples = "unknown" if each.num_examples is None else f"{each.num_examples:,}"
        minutes = f"{each.of_all(each.seconds) / 60:,.1f}"
        rows.append((each.task, each.split, examples, f"{each.num_read:,}", *totals, minutes))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{'<' if column < 2 else '>'}{width}}}" for column, width in enumerate(widths))
    num_tokens = sum(each.of_all(each.num_tokens) for each in found)
    num_bytes = sum(each.of_all(each.num_bytes) for each in found)
    hours = sum(each.of_all(each.seconds) for each in found) / 3600
    lines = ["dry run: nothing is written; what all examples give is estimated from those that were read"]
    lines += [line.format(*row) for row in rows]
    skipped = Skipped()
    for each in found:
        skipped.update(each.skipped)
    if report := skipped_report(tasks):
        lines += ["skipped without reading images:", report]
    if skipped.by_kind:
        lines += [f"of {sum(each.num_read for each in found):,} examples that were read, these are skipped:"]
        lines += [f"  {each}" for each in skipped.lines()]
    lines.append(
        f"in all about {num_tokens:,.0f} tokens, {num_bytes / 2**30:,.2f} GiB, and {hours:,.2f} hours of this "
        "process; N such processes take the N-th part. Not counted: neighbors of retrieval"
        f"{', and duplicates, which are found when all images are read' if corpus.duplicates.any else ''}"
    )
    if any(each.num_examples is None for each in found):
        lines.append("where the number of examples is unknown, the numbers are those of the examples that were read")
    return "\n".join(lines)
