"""Reads the documents of a seqio Mixture or Task in a fixed order."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.curation.curator import Curator
from cm3leon_jax.data.sources.registry import SOURCES, named_source
from cm3leon_jax.data.sources.skipped import Skipped, printable
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.registry import import_module

log = logging.getLogger(__name__)

# Examples that cross from TensorFlow at a time, and how many times as many wait.
_EXAMPLES_AT_ONCE = 16
_BATCHES_AHEAD = 2
# Examples that are read one after the other of those that are spread over a split.
_SPREAD_BLOCK = 100


@dataclass(frozen=True)
class SkippedExample:
    """An example that is no document, why, and, of one that a source passes over beforehand, where it is."""

    reason: str
    where: str = ""
    # Else it is sound, but the config does not want it.
    is_fault: bool = True


@dataclass(frozen=True)
class ShardSlice:
    """A process's part of a split: every `step`-th shard of `size` examples, from shard `first` on.

    One example past each shard belongs to it, so that the reader can tell whether the split ends there.
    """

    size: int
    first: int = 0
    step: int = 1

    def contains(self, index: Any) -> Any:
        """Whether an example is in it; for numbers from the first shard on, Python's or TensorFlow's."""
        shard, offset = index // self.size - self.first, index % self.size
        return (shard % self.step == 0) | ((offset == 0) & ((shard - 1) % self.step == 0) & (shard > 0))

    def ranges(self, num_examples: int) -> Iterator[tuple[int, int]]:
        """The ranges (start, stop) of a split of `num_examples` that it contains."""
        first = self.first * self.size
        if self.step == 1 and first < num_examples:
            yield first, num_examples
            return
        for start in range(first, num_examples, self.step * self.size):
            yield start, min(start + self.size + 1, num_examples)


@dataclass(frozen=True)
class TaskReader:
    """One task of the mixture."""

    name: str
    rate: float
    splits: tuple[str, ...]
    # Says which documents are wanted.
    curator: Curator
    _task: Any

    def num_examples(self, split: str) -> int | None:
        """How many examples the task says it has; None if it does not say."""
        return self._task.num_input_examples(split)

    def provenance(self) -> dict[str, str]:
        """What the documents follow from besides the task's name, if its data source says so (`TracedSource`)."""
        return getattr(self._task.source, "provenance", dict)()

    def num_documents(self) -> int:
        """How many examples there are in all splits, as far as the task says so."""
        return sum(self.num_examples(split) or 0 for split in self.splits)

    @property
    def min_images(self) -> int | None:
        """How many images its documents have to have where they are interleaved (`Document.min_images`)."""
        return getattr(self._task.source, "min_images", None)

    @property
    def is_sampled(self) -> bool:
        """Whether an epoch takes one of the documents of a row (`RowsConfig.captions`)."""
        return bool(getattr(self._task.source, "is_sampled", False))

    def check_sampled(self) -> None:
        """Refuses captions to be sampled where preprocessors make documents of their own, which have no groups."""
        if self.is_sampled and not self._is_of_source:
            raise UserError(
                f"the task {self.name} has preprocessors, after which nobody knows which captions are of one image: "
                "set config.corpus.rows.captions to another value than 'sampled', or leave them out"
            )

    def skipped(self) -> Skipped:
        """What the data source passed over before there were examples."""
        return getattr(self._task.source, "skipped", None) or Skipped()

    def changed_since(self, time: float) -> list[str]:
        """Files of the data source that were changed after a time, in seconds since 1970, if it knows them."""
        return getattr(self._task.source, "changed_since", lambda time: [])(time)

    def where(self, split: str, index: int) -> str:
        """The file that an example comes from, if the data source knows it."""
        return printable(self._task.source.where(split, index)) if hasattr(self._task.source, "where") else ""

    def documents(self, split: str, start: int = 0) -> Iterator[Document | SkippedExample]:
        """The documents from example `start` on, always in the same order."""
        return (document for _, document in self.numbered(split, ShardSlice(1, start)))

    def numbered(self, split: str, part: ShardSlice) -> Iterator[tuple[int, Document | SkippedExample]]:
        """A part of the documents, each with its number among all of the split's."""
        found = self._of_source(split, part) if self._is_of_source else self._of_task(split, part)
        return ((index, self._wanted(document)) for index, document in found)

    @property
    def _is_of_source(self) -> bool:
        """Whether the documents are those that a `DocumentSource` gives: they need not go through TensorFlow."""
        return hasattr(self._task.source, "documents") and not self._task.preprocessors

    def _of_source(self, split: str, part: ShardSlice) -> Iterator[tuple[int, Document | SkippedExample]]:
        for start, stop in part.ranges(self.num_examples(split) or 0):
            index = start - 1
            try:
                for index, document in enumerate(self._task.source.documents(split, start, stop), start):
                    yield index, _of_whole_characters(document)
            except (OSError, ValueError) as error:
                raise self._unreadable(split, part, index, f"{type(error).__name__}: {error}") from error

    def _of_task(self, split: str, part: ShardSlice) -> Iterator[tuple[int, Document | SkippedExample]]:
        import tensorflow as tf

        index = part.first * part.size - 1
        try:
            for dataset in self._datasets(split, part):
                for index, example in _examples(dataset):
                    found = _document(self.name, index, example)
                    if self.min_images is not None and isinstance(found, Document):
                        found = replace(found, min_images=self.min_images)
                    yield index, found
        except tf.errors.OpError as error:
            lines = [line for line in str(error.message).splitlines() if line.strip()]
            reason = next((line for line in lines if "Error:" in line), lines[0] if lines else type(error).__name__)
            raise self._unreadable(split, part, index, reason) from None

    def _unreadable(self, split: str, part: ShardSlice, last: int, reason: str) -> UserError:
        """What to say of an example, the next one after number `last`, that raises an error."""
        where = f"example {last + 1}" if part.step == 1 else f"an example from {last + 1} on"
        return UserError(f"the task {self.name} cannot read {where} of {split!r}: {reason.strip()}")

    def spread(self, split: str, count: int) -> Iterator[tuple[int, Document | SkippedExample]]:
        """At least `count` examples, or all, with their numbers: from all over the split if its ranges can be read."""
        size = self.num_examples(split) or 0
        num_blocks = max(1, count // _SPREAD_BLOCK)
        if not hasattr(self._task.source, "between") or num_blocks == 1:
            yield from self.numbered(split, ShardSlice(1))
            return
        part = ShardSlice(_SPREAD_BLOCK, 0, max(1, size // (num_blocks * _SPREAD_BLOCK)))
        for index, document in self.numbered(split, part):
            if index // part.size % part.step == 0:
                yield index, document

    def _wanted(self, document: Document | SkippedExample) -> Document | SkippedExample:
        if isinstance(document, SkippedExample):
            return document
        found = self.curator.curated(document)
        return SkippedExample(found, is_fault=False) if isinstance(found, str) else found

    def _datasets(self, split: str, part: ShardSlice) -> Iterator[Any]:
        """Datasets of a part's examples with their numbers, one after the other."""
        num_examples = self.num_examples(split) or 0
        if hasattr(self._task.source, "between") and self._slice(split, 0, num_examples).cardinality() == num_examples:
            # A document for each example of the source, so what others read is not even opened.
            for start, stop in part.ranges(num_examples):
                yield self._slice(split, start, stop).enumerate(start)
            return
        dataset = self._task.get_dataset(sequence_length=None, split=split, shuffle=False, use_cached=False)
        numbered = dataset.enumerate().skip(part.first * part.size)
        # What others read never crosses into Python.
        yield numbered.filter(lambda index, _: part.contains(index)) if part.step > 1 else numbered

    def _slice(self, split: str, start: int, stop: int) -> Any:
        """Documents of a range of the source's examples, where that is a `SlicedSource`."""
        dataset = self._task.preprocess_precache(self._task.source.between(split, start, stop))
        return self._task.preprocess_postcache(dataset, sequence_length=None)


def _examples(dataset: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The examples of a dataset with their numbers, many at a time: each step from TensorFlow to Python is slow."""
    import tensorflow as tf

    done = 0
    for at_once in (_EXAMPLES_AT_ONCE, 1):
        try:
            batches = dataset.skip(done).map(_features).ragged_batch(at_once).prefetch(_BATCHES_AHEAD)
            for numbers, features in batches.as_numpy_iterator():
                columns = {name: _rows(column) for name, column in features.items()}
                for row, number in enumerate(numbers):
                    done += 1
                    yield int(number), {name: column[row] for name, column in columns.items()}
            return
        except tf.errors.OpError:
            # One of many cannot be read: they are read one by one up to that.
            if at_once == 1:
                raise


def _features(number: Any, example: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What documents are made of, in a form that batches."""
    import tensorflow as tf

    found = {name: tf.ensure_shape(example[name], [None]) for name in ("segments", "is_image")}
    return number, found | ({"template": example["template"]} if "template" in example else {})


def _rows(column: Any) -> Any:
    """The values of each example of a batch."""
    if not hasattr(column, "row_splits"):
        return column
    return np.split(column.values, column.row_splits[1:-1])


def open_mixture(corpus: CorpusConfig) -> tuple[TaskReader, ...]:
    """The tasks of `config.corpus.mixture`, with their rates, by name.

    Raises:
      UserError: if seqio is not installed, a module cannot be imported, or there is no such mixture of documents.
    """
    seqio = _import_seqio()
    for module in corpus.modules:
        import_module(module, "config.corpus.modules")
    if not corpus.mixture:
        raise UserError(f"config.corpus.mixture is empty: name {_choice(seqio)}")
    source, name = named_source(corpus), corpus.mixture
    if source is not None:
        name = source.task_name
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
        source.add_task()
    try:
        found = seqio.get_mixture_or_task(name)
    except ValueError:
        raise UserError(
            f"config.corpus.mixture is {name!r}, but no Mixture or Task of that name is registered by "
            f"{', '.join(corpus.modules) or 'config.corpus.modules, which is empty'}: name {_choice(seqio)}"
        ) from None
    if not _is_of_documents(found):
        raise UserError(
            f"the features of {name!r} are {', '.join(found.output_features)}: a task of documents has `segments` and "
            "`is_image`, one of instructions also `template` (see cm3leon_jax.data.sources.OUTPUT_FEATURES)"
        )
    tasks_found, rates = (found.tasks, _rates(found)) if isinstance(found, seqio.Mixture) else ([found], {name: 1.0})
    readers = tuple(
        TaskReader(
            task.name,
            rates[task.name],
            tuple(task.splits),
            Curator(getattr(task.source, "curation", corpus.curation)),
            task,
        )
        for task in tasks_found
        if rates[task.name]
    )
    for reader in readers:
        reader.check_sampled()
        skipped = reader.skipped()
        check_num_skipped(corpus, reader.name, reader.num_documents(), skipped.num_documents, skipped.in_one_line())
    return readers


def _is_of_documents(found: Any) -> bool:
    """Whether a Task or Mixture has the features of documents."""
    return {"segments", "is_image"} <= set(found.output_features) <= {"segments", "is_image", "template"}


def check_num_skipped(corpus: CorpusConfig, task: str, num_documents: int, num_skipped: int, kinds: str) -> None:
    """Refuses a task of which more is skipped than the config allows; `kinds` tells of it."""
    if num_skipped > corpus.max_skipped_fraction * (num_documents + num_skipped):
        raise UserError(
            f"the task {task} has {num_documents:,} documents, but {num_skipped:,} had to be skipped, more than "
            f"config.corpus.max_skipped_fraction={corpus.max_skipped_fraction:g} of all; fix them or raise it "
            f"({kinds})"
        )


def skipped_report(tasks: Sequence[TaskReader]) -> str:
    """What the tasks' data sources passed over: a line for each task and kind, or nothing."""
    lines = []
    for task in tasks:
        if (skipped := task.skipped()).by_kind:
            lines.append(f"{task.name}: {task.num_documents():,} documents, {skipped.by_kind.total():,} skipped:")
            lines += [f"  {line}" for line in skipped.lines()]
    return "\n".join(lines)


def source_changes(was: dict[str, str], now: dict[str, str]) -> str:
    """In what a task's provenance differs from a stored one; a value that only one of them has is not compared."""
    return "; ".join(f"{name}: {was[name]}, now {now[name]}" for name in now if was.get(name, now[name]) != now[name])


def changes_since(record: dict[str, Any], sources: dict[str, dict[str, str]]) -> str:
    """In what tasks differ from those that a record (`sources`) says something was made from; empty if in nothing."""
    stored = record.get("sources", {})
    changed = {task: source_changes(stored.get(task, {}), now) for task, now in sources.items()}
    return "; ".join(f"{task}: {changes}" for task, changes in changed.items() if changes)


def current_changes(corpus: CorpusConfig, record: dict[str, Any]) -> str:
    """The same for the mixture as it is now; empty where that is unknown without seqio."""
    try:
        source = named_source(corpus)
        now = source.provenance() if source else None
    except UserError:
        # What was made from the source does not need it any more.
        return ""
    return changes_since(record, {source.task_name: now}) if source and now else ""


def provenance_of(corpus: CorpusConfig) -> dict[str, dict[str, str]]:
    """What the documents of `config.corpus.mixture` follow from, by task; without seqio where the source can tell."""
    source = named_source(corpus)
    if source is not None and (now := source.provenance()) is not None:
        return {source.task_name: now}
    return {task.name: found for task in open_mixture(corpus) if (found := task.provenance())}


def _rates(mixture: Any) -> dict[str, float]:
    """How often each task of a mixture is sampled, relative to the others; 0 excludes it."""
    rates = {}
    for task in mixture.tasks:
        try:
            rates[task.name] = float(mixture.get_rate(task))
        # A rate may be a function of the user's.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"the mixture {mixture.name!r} has no rate for its task {task.name!r}: {reason}") from None
    named = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    if not any(rates.values()) or not all(math.isfinite(rate) and rate >= 0 for rate in rates.values()):
        fault = "that are negative, no numbers, or all 0"
        raise UserError(f"the mixture {mixture.name!r} has rates {fault} ({named}): register others")
    return rates


def read_documents(corpus: CorpusConfig, split: str, start: int = 0) -> Iterator[Document]:
    """Documents of all tasks that have `split`, interleaved by rate; `start` skips that many of each task.

    When a task ends, the others go on; malformed examples are skipped.
    """
    tasks = [task for task in open_mixture(corpus) if split in task.splits]
    if report := skipped_report(tasks):
        log.info(report)
    if not tasks:
        raise UserError(f"no task of {corpus.mixture!r} has a split {split!r}: see config.corpus.train_split")
    open_tasks = {task.name: task.documents(split, start) for task in tasks}
    rates = {task.name: task.rate for task in tasks}
    taken = dict.fromkeys(open_tasks, 0)
    while open_tasks:
        name = min(open_tasks, key=lambda task: (taken[task] + 1) / rates[task])
        taken[name] += 1
        document = next(open_tasks[name], None)
        if document is None:
            del open_tasks[name]
        elif isinstance(document, Document):
            yield document


def _document(task: str, index: int, example: dict[str, Any]) -> Document | SkippedExample:
    segments, is_image = example["segments"], example["is_image"]
    if len(segments) != len(is_image):
        raise UserError(
            f"example {index} of the task {task} has {len(segments)} segments but {len(is_image)} values of is_image: "
            "one for each segment"
        )
    try:
        return Document(
            tuple(
                ImageSegment(bytes(segment)) if image else TextSegment(bytes(segment).decode())
                for segment, image in zip(segments, is_image, strict=True)
            ),
            bytes(example.get("template", b"")).decode(),
        )
    except UnicodeDecodeError as error:
        return SkippedExample(f"text is not UTF-8: {error.reason} at byte {error.start}")


def _of_whole_characters(document: Document | SkippedExample) -> Document | SkippedExample:
    """A document, or why it is none where a text of it has half a character, which no file can hold."""
    if isinstance(document, Document):
        try:
            document.text.encode()
        except UnicodeEncodeError as error:
            return SkippedExample(f"text is not UTF-8: {error.reason} at character {error.start}")
    return document


def _import_seqio() -> Any:
    try:
        with _silent_stderr():
            import seqio
            import tensorflow as tf
            from absl import logging

            # The accelerator's memory is for the image tokenizer.
            tf.config.set_visible_devices([], "GPU")
    except ImportError as error:
        raise UserError(f"reading raw data needs seqio ({error}): pip install 'cm3leon_jax[data]'") from None
    logging.set_verbosity(logging.ERROR)
    return seqio


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    # TensorFlow's libraries print a page of notices while they load, whatever their settings say.
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _choice(seqio: Any) -> str:
    registered = (*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names())
    names = [name for name in sorted(registered) if _is_of_documents(seqio.get_mixture_or_task(name))]
    return f"one of {', '.join([*names, *(f'{kind}:LOCATION' for kind in SOURCES)])}"
