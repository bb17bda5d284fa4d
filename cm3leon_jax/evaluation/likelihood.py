"""How likely a model finds held-out documents as they are: by modality, position and role, after others or none.

Nothing is masked: a row is `</s> (neighbor <break>)* document </s>`, the best neighbor next to the document, and only
the document's own tokens count. Its neighbors are those found by its text: its image's would give it away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.data.batches.instructions import stored_roles
from cm3leon_jax.data.batches.objective import positions_in_image
from cm3leon_jax.data.corpus.neighbors import NONE, NeighborLists
from cm3leon_jax.documents import Role
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate, ratio
from cm3leon_jax.models.sharding import batch_sharding, check_batch_divides, global_array
from cm3leon_jax.ranges import OneOf, PositiveInt
from cm3leon_jax.training.eval_loss import make_token_losses
from cm3leon_jax.vocabulary import Vocabulary

_QUARTERS = 4
_SEED = 0

Tokens = Int[np.ndarray, "_"]
# (documents before, document) of each row.
Rows = Sequence[tuple[list[Tokens], Tokens]]


@dataclass(frozen=True)
class Likelihood:
    """Loss in nats per token, its exponential, and bits per pixel, of the documents of the held-out split."""

    num_documents: PositiveInt = 256
    batch_size: PositiveInt = 16
    # What comes before each document: nothing, the nearest neighbor, all by text, or as many random documents.
    contexts: tuple[Annotated[str, OneOf("none", "top_1", "all", "random")], ...] = ("none",)

    def __call__(self, evaluation: EvaluationContext) -> dict[str, Estimate]:
        check_batch_divides(self.batch_size, evaluation.model.mesh)
        config, documents = evaluation.config, _documents(evaluation, self.num_documents)
        lists = None
        if set(self.contexts) - {"none"}:
            lists = NeighborLists.open(evaluation.corpus, config.retrieval, config.corpus.train_split)
        rows = [
            (_before(context, lists, evaluation, task, index), document)
            for context in self.contexts
            for task, index, document in documents
        ]
        losses = document_losses(rows, evaluation, self.batch_size)
        measured: dict[str, Estimate] = {}
        image = config.image_tokenizer
        scale = image.image_length / image.resolution**2 / math.log(2)
        tokens = [document for _, _, document in documents]
        roles = _roles(evaluation, documents)
        for number, context in enumerate(self.contexts):
            suffix = "" if context == "none" else f"_{context}"
            of_context = losses[number * len(tokens) : (number + 1) * len(tokens)]
            found = by_modality(of_context, tokens, evaluation.model.vocabulary) | by_role(of_context, roles)
            for name, estimate in found.items():
                measured[f"likelihood_{name}{suffix}"] = estimate
                if name in ("loss_text", "loss_image"):
                    measured[f"likelihood_{name.replace('loss', 'perplexity')}{suffix}"] = estimate.map(math.exp)
            if "loss_image" in found:
                measured[f"likelihood_bits_per_pixel{suffix}"] = found["loss_image"].map(lambda nats: nats * scale)
        return measured


def by_modality(
    losses: Sequence[Float[np.ndarray, "_"]], documents: Sequence[Tokens], vocabulary: Vocabulary
) -> dict[str, Estimate]:
    """Nats per token of texts, of images, and of each quarter of the images' codes in raster order.

    Args:
      losses: of the tokens of each document, the end included.
    """
    parts: dict[str, list[tuple[float, float]]] = {}

    def add(name: str, values: Float[np.ndarray, "_"]) -> None:
        if len(values):
            parts.setdefault(name, []).append((float(values.sum()), float(len(values))))

    for document, of_document in zip(documents, losses, strict=True):
        is_image: Bool[np.ndarray, "_"] = np.append(np.asarray(vocabulary.is_image(document)), False)
        add("loss_text", of_document[~is_image])
        add("loss_image", of_document[is_image])
        # Of a code, from 1: `positions_in_image` has 1 + the position of what follows it.
        position = positions_in_image(np.append(document, vocabulary.end), vocabulary) - 1
        length = position.max()
        for quarter in range(_QUARTERS):
            first, last = quarter * length // _QUARTERS, (quarter + 1) * length // _QUARTERS
            add(f"loss_image_quarter_{quarter + 1}", of_document[is_image & (position > first) & (position <= last)])
    return {name: ratio(*np.array(sums).T) for name, sums in parts.items()}


def by_role(
    losses: Sequence[Float[np.ndarray, "_"]], roles: Sequence[UInt8[np.ndarray, "_"] | None]
) -> dict[str, Estimate]:
    """Nats per token of the context, the instruction and the target of those documents that have roles.

    Args:
      losses: of the tokens of each document, the end included.
    """
    parts: dict[str, list[tuple[float, float]]] = {}
    for of_document, of_tokens in zip(losses, roles, strict=True):
        for role in (Role.CONTEXT, Role.INSTRUCTION, Role.TARGET):
            if of_tokens is not None and (chosen := np.minimum(of_tokens, Role.TARGET) == role).any():
                values = of_document[:-1][chosen]
                parts.setdefault(f"loss_{role.name.lower()}", []).append((float(values.sum()), float(len(values))))
    return {name: ratio(*np.array(sums).T) for name, sums in parts.items()}


def document_losses(rows: Rows, evaluation: EvaluationContext, batch_size: int) -> list[Float[np.ndarray, "_"]]:
    """-log p of each token of the rows' documents and of the end, in nats; all processes of a run call this."""
    model, config = evaluation.model, evaluation.config
    length = config.batch.sequence_length
    token_losses = make_token_losses(
        config.model,
        model.vocabulary,
        length,
        model.mesh,
        config.train.loss_chunks,
        config.image_tokenizer.image_length,
    )
    found: list[Float[np.ndarray, "_"]] = []
    for start in range(0, len(rows), batch_size):
        batch, spans = batch_of(rows[start : start + batch_size], batch_size, length, model.vocabulary)
        placed = jax.tree.map(lambda array: global_array(array, batch_sharding(model.mesh)), batch)
        losses = np.asarray(token_losses(model.parameters, placed))
        found += [losses[row, first:last] for row, (first, last) in enumerate(spans)]
    return found


def batch_of(rows: Rows, batch_size: int, length: int, vocabulary: Vocabulary) -> tuple[Batch, list[tuple[int, int]]]:
    """A batch of a row each, and where the targets of its document begin and end.

    Documents before it that do not fit are left out, the farthest first.
    """
    batch = Batch.padding(batch_size, length, vocabulary.pad)
    spans = []
    end, separator = np.array([vocabulary.end]), np.array([vocabulary.break_])
    for row, (before, document) in enumerate(rows):
        before = list(before)
        while before and sum(len(part) + 1 for part in before) + len(document) + 1 > length:
            before.pop(0)
        context = np.concatenate([end, *(part for each in before for part in (each, separator))])
        tokens = np.concatenate([context, document, end]).astype(np.int32)
        stop = len(tokens) - 1
        batch.tokens[row, :stop], batch.targets[row, :stop] = tokens[:-1], tokens[1:]
        batch.weights[row, :stop] = 1
        batch.positions[row, :stop] = np.arange(stop)
        batch.document_start[row, :stop] = 0
        batch.image_positions[row, :stop] = positions_in_image(tokens, vocabulary)[:-1]
        spans.append((len(context) - 1, stop))
    return batch, spans


def _documents(evaluation: EvaluationContext, most: int) -> list[tuple[str, int, Tokens]]:
    """(task, index, tokens) of the first documents of the held-out split that fit into a sequence, task by task."""
    split, length = evaluation.config.corpus.held_out_split, evaluation.config.batch.sequence_length
    found: list[tuple[str, int, Tokens]] = []
    splits = evaluation.corpus.splits(split)
    for task, documents in splits.items():
        of_task = range(min(documents.num_documents, -(-most // len(splits))))
        found += [
            (task, index, document) for index in of_task if len(document := documents.document(index)) + 1 <= length
        ]
    if not found:
        raise UserError(
            f"the split {split!r} of {evaluation.corpus.path} has no document that fits config.batch.sequence_length "
            f"{length}: name another config.corpus.held_out_split"
        )
    return found[:most]


def _roles(
    evaluation: EvaluationContext, documents: Sequence[tuple[str, int, Tokens]]
) -> list[UInt8[np.ndarray, "_"] | None]:
    splits = evaluation.corpus.splits(evaluation.config.corpus.held_out_split)
    return [stored_roles(splits[task], index, evaluation.model.vocabulary) for task, index, _ in documents]


def _before(
    context: str, lists: NeighborLists | None, evaluation: EvaluationContext, task: str, index: int
) -> list[Tokens]:
    """The documents before a document, the nearest last."""
    if context == "none":
        return []
    assert lists is not None
    retrieval = evaluation.config.retrieval
    if context == "random":
        rng = np.random.default_rng([_SEED, index])
        chosen = rng.integers(0, len(lists.documents), max(1, retrieval.num_by_text)).tolist()
    else:
        neighbors, _ = lists.of_split(task, evaluation.config.corpus.held_out_split)
        most = 1 if context == "top_1" else retrieval.num_by_text
        chosen = [number for number in neighbors[index, :most].tolist() if number != NONE][::-1]
    return [lists.documents.document(number) for number in chosen]
