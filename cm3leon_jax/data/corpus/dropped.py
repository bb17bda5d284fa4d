"""Which examples are dropped before any image is encoded: those whose text does not fit, then duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.document_tokenizer import DocumentTokenizer
from cm3leon_jax.data.corpus.duplicates import Duplicates, find_duplicates
from cm3leon_jax.data.corpus.pair_scores import LoadEncoder, ScoreFloor, load_scorer, write_scores
from cm3leon_jax.data.sources.reading import SkippedExample, TaskReader
from cm3leon_jax.distributed import barrier
from cm3leon_jax.documents import Document


@dataclass(frozen=True)
class DroppedExamples:
    """Those of a split."""

    floor: ScoreFloor | None
    duplicates: Duplicates

    def kept(self, index: int, document: Document | SkippedExample) -> Document | SkippedExample:
        """A document as it is, or why it is dropped."""
        if isinstance(document, SkippedExample):
            return document
        if self.floor is not None and (below := self.floor.dropped(index)) is not None:
            return below
        return self.duplicates.get(index, document)


def find_dropped(
    corpus: CorpusConfig,
    path: Path,
    tasks: Sequence[TaskReader],
    tokens: DocumentTokenizer,
    load_encoder: LoadEncoder,
) -> dict[tuple[str, str], DroppedExamples]:
    """The dropped examples by task and split; what an earlier call found is read. All processes call this together.

    Raises:
      UserError: if a file of scores or hashes is damaged, or there is no encoder that scores.
    """
    splits = [
        (task, split) for task in tasks for split in (corpus.held_out_split, corpus.train_split) if split in task.splits
    ]
    floors = dict[tuple[str, str], ScoreFloor]()
    for task, split in splits:
        if (least := task.curator.min_clip_score) is not None:
            folder = path / task.name / split
            write_scores(task, split, folder, corpus.examples_per_shard, tokens, load_scorer(load_encoder))
            floors[task.name, split] = ScoreFloor(folder, corpus.examples_per_shard, least)
    if floors:
        barrier("all documents are scored")
    duplicates = find_duplicates(corpus, path, tasks, floors)
    return {
        key: DroppedExamples(floors.get(key), duplicates.get(key, {}))
        for key in ((task.name, split) for task, split in splits)
    }
