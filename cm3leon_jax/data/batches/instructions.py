"""How the instructions of a block are put: in which wording, without which condition, with which targets masked.

All of it is a function of (seed, task, epoch, document): an instruction comes in a new way every time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from cm3leon_jax import counter_random
from cm3leon_jax.counter_random import Stream
from cm3leon_jax.data.batches.config import BatchConfig, ObjectiveConfig
from cm3leon_jax.data.batches.objective import SpanMasks
from cm3leon_jax.data.batches.order import DocumentReferences
from cm3leon_jax.data.corpus.instructions import Instructions
from cm3leon_jax.data.corpus.prepared import TaskSplit
from cm3leon_jax.data.templates.tokenized import Assembled, TokenizedTemplate, load_template
from cm3leon_jax.errors import UserError
from cm3leon_jax.vocabulary import Vocabulary


@dataclass(frozen=True)
class InstructionPlan:
    """How each document of a block is put; of one without a template, nothing."""

    # Its template, as its number in `InstructionPlanner.names`; -1 of a document without.
    template: Int32[np.ndarray, "n"]
    wording: Int32[np.ndarray, "n"]
    # Which of the template's `drops`; -1: none.
    dropped: Int32[np.ndarray, "n"]
    # Whether its targets are masked that something follows, and how many these are.
    has_target_masks: Bool[np.ndarray, "n"]
    num_inner_targets: Int64[np.ndarray, "n"]
    lengths: Int64[np.ndarray, "n"]

    @property
    def is_instruction(self) -> Bool[np.ndarray, "n"]:
        return self.template >= 0

    def fit_masks(self, masks: SpanMasks, num_masks: int) -> SpanMasks:
        """The masks of documents, of which instructions have as many as their plan says."""
        targets = np.minimum(self.num_inner_targets, num_masks)
        counts = np.where(self.has_target_masks, targets, masks.counts)
        return dataclasses.replace(masks, counts=np.where(self.dropped >= 0, 0, counts))


class InstructionPlanner:
    """Samples how instructions are put, and puts them so."""

    def __init__(
        self,
        splits: Mapping[str, TaskSplit],
        vocabulary: Vocabulary,
        objective: ObjectiveConfig,
        batch: BatchConfig,
    ) -> None:
        self._splits, self._objective, self._seed = list(splits.values()), objective, batch.seed
        names = dict.fromkeys(name for split in self._splits if split.instructions for name in split.instructions.names)
        self.names = tuple(names)
        self._templates = {name: load_template(name, vocabulary) for name in names}
        for name, split in splits.items():
            _check_fields(name, split, self._templates)
        if names and batch.packing != "best_fit":
            raise UserError(
                f"config.batch.packing is {batch.packing!r}, which cuts documents anywhere, but the corpus has "
                f"instructions ({', '.join(names)}), whose targets need what is before them: set 'best_fit'"
            )

    def plan(self, references: DocumentReferences) -> InstructionPlan | None:
        """How the documents of a block are put; None where no document of the corpus has a template."""
        if not self.names:
            return None
        size = len(references.task)
        plan = InstructionPlan(
            template=np.full(size, -1, np.int32),
            wording=np.zeros(size, np.int32),
            dropped=np.full(size, -1, np.int32),
            has_target_masks=np.zeros(size, bool),
            num_inner_targets=np.zeros(size, np.int64),
            lengths=np.zeros(size, np.int64),
        )
        for task, split in enumerate(self._splits):
            if (stored := split.instructions) is None:
                continue
            mine = np.flatnonzero(references.task == task)
            for number, name in enumerate(stored.names):
                chosen = mine[stored.templates[references.document[mine]] == number]
                if len(chosen):
                    self._plan_template(plan, self._templates[name], stored, references, chosen)
        return plan

    def assemble(self, plan: InstructionPlan, index: int, split: TaskSplit, document: int) -> Assembled:
        """A document of the block in its wording."""
        template = self._templates[self.names[plan.template[index]]]
        dropped = template.drops[plan.dropped[index]] if plan.dropped[index] >= 0 else ()
        return template.assemble(split.fields(document), int(plan.wording[index]), dropped)

    def _plan_template(
        self,
        plan: InstructionPlan,
        template: TokenizedTemplate,
        stored: Instructions,
        references: DocumentReferences,
        chosen: Int64[np.ndarray, "k"],
    ) -> None:
        """Fills in the plan of the documents of one template and task."""
        document = references.document[chosen]
        key = (references.task[chosen], references.epoch[chosen], document)
        wording = np.floor(self._uniform(Stream.WORDING, *key) * template.num_wordings).astype(np.int32)
        once, in_turns, turns = _field_lengths(template, stored, document)
        row = np.arange(len(chosen))
        plan.template[chosen] = self.names.index(template.name)
        plan.wording[chosen] = wording
        plan.lengths[chosen] = template.lengths(once, in_turns, turns)[row, wording]
        plan.num_inner_targets[chosen] = template.num_inner_targets(turns)[row, wording]
        plan.has_target_masks[chosen] = self._uniform(Stream.TARGET_MASKS, *key) < self._objective.target_mask_prob
        if template.drops and (share := self._objective.condition_drop_prob):
            drop = np.floor(self._uniform(Stream.DROPPED_CONDITION, *key) / share * len(template.drops))
            plan.dropped[chosen] = np.where(drop < len(template.drops), drop, -1)

    def _uniform(self, stream: Stream, *key: np.ndarray) -> np.ndarray:
        return counter_random.uniform(self._seed, stream, *key)


def stored_roles(split: TaskSplit, document: int, vocabulary: Vocabulary) -> UInt8[np.ndarray, "n"] | None:
    """The role of each token of a document as it is stored; None of one without a template."""
    if not (name := split.template(document)):
        return None
    return load_template(name, vocabulary).assemble(split.fields(document)).roles


def _field_lengths(
    template: TokenizedTemplate, stored: Instructions, documents: Int64[np.ndarray, "k"]
) -> tuple[Int64[np.ndarray, "k once"], Int64[np.ndarray, "k turn"], Int64[np.ndarray, "k"]]:
    """Lengths of the fields outside of turns, sums of those of the turns, and the numbers of turns."""
    num_once, num_in_turn = len(template.template.once), len(template.template.in_turns)
    first, lengths = stored.first_field[documents], stored.field_lengths
    turns = np.zeros(len(documents), np.int64)
    if num_in_turn:
        turns = (stored.num_fields[documents].astype(np.int64) - num_once) // num_in_turn
    once = lengths[first[:, None] + np.arange(num_once)].astype(np.int64)
    in_turns = np.zeros((len(documents), num_in_turn), np.int64)
    for turn in range(int(turns.max(initial=0))):
        has = turns > turn
        fields = first[has, None] + num_once + turn * num_in_turn + np.arange(num_in_turn)
        in_turns[has] += lengths[fields]
    return once, in_turns, turns


def _check_fields(task: str, split: TaskSplit, templates: Mapping[str, TokenizedTemplate]) -> None:
    """Refuses a corpus whose instructions were stored for other wordings than the templates have now."""
    if (stored := split.instructions) is None:
        return
    for number, name in enumerate(stored.names):
        template = templates[name].template
        counts = np.unique(stored.num_fields[stored.templates == number]).astype(np.int64) - len(template.once)
        fits = counts % len(template.in_turns) == 0 if template.in_turns else counts == 0
        if not (fits.all() and (counts >= 0).all()):
            raise UserError(
                f"the instructions {name!r} of the task {task} were prepared for other fields than the template has "
                "now: delete the corpus and run `cm3leon prepare` again, or give the template its wordings back"
            )
