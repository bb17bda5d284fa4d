"""How likely a model finds held-out documents as they are, by modality and position, after retrieved ones or none.

Nothing is masked: a row is `</s> (neighbor <break>)* document </s>`, the best neighbor next to the document, and only
the document's own tokens count. Its neighbors are those found by its text: its image's would give it away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.data.batches.objective import positions_in_image
from cm3leon_jax.data.corpus.neighbors import NONE, NeighborLists
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate, ratio
from cm3leon_jax.generation.load import TrainedModel
from cm3leon_jax.models.sharding import batch_sharding, check_batch_divides, global_array, shardings
from cm3leon_jax.models.transformer import abstract_model
from cm3leon_jax.ranges import PositiveInt
from cm3leon_jax.training.loss import head_loss
from cm3leon_jax.training.step import loss_chunks
from cm3leon_jax.vocabulary import Vocabulary

CONTEXTS = ("none", "top_1", "all", "random")
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
    contexts: tuple[str, ...] = ("none",)

    def __call__(self, evaluation: EvaluationContext) -> dict[str, Estimate]:
        if unknown := [name for name in self.contexts if name not in CONTEXTS]:
            raise UserError(f"the metric likelihood has no context {unknown[0]!r}: it has {', '.join(CONTEXTS)}")
        check_batch_divides(self.batch_size, evaluation.model.mesh)
        config, documents = evaluation.config, _documents(evaluation, self.num_documents)
        lists = None
        if set(self.contexts) - {"none"}:
            lists = NeighborLists.open(
                evaluation.corpus, evaluation.config.retrieval, evaluation.config.corpus.train_split
            )
        measured: dict[str, Estimate] = {}
        token_losses = make_token_losses(evaluation, self.batch_size)
        image = config.image_tokenizer
        scale = image.image_length / image.resolution**2 / math.log(2)
        for context in self.contexts:
            suffix = "" if context == "none" else f"_{context}"
            rows = [(_before(context, lists, evaluation, task, index), document) for task, index, document in documents]
            losses = token_losses(rows)
            found = by_modality(losses, [document for _, _, document in documents], evaluation.model.vocabulary)
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


def make_token_losses(evaluation: EvaluationContext, batch_size: int) -> Callable[[Rows], list[Float[np.ndarray, "_"]]]:
    """A function of rows: -log p of each token of their documents and of the end, in nats; all processes call it."""
    model, config = evaluation.model, evaluation.config
    length = config.batch.sequence_length
    compiled = _compiled(model, evaluation)

    def token_losses(rows: Rows) -> list[Float[np.ndarray, "_"]]:
        found: list[Float[np.ndarray, "_"]] = []
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            batch, spans = batch_of(chunk, batch_size, length, model.vocabulary)
            placed = jax.tree.map(lambda array: global_array(array, batch_sharding(model.mesh)), batch)
            losses = np.asarray(compiled(model.parameters, placed))
            found += [losses[row, first:last] for row, (first, last) in enumerate(spans)]
        return found

    return token_losses


def _compiled(model: TrainedModel, evaluation: EvaluationContext) -> Callable[[nnx.State, Batch], Array]:
    config = evaluation.config
    _, abstract = abstract_model(
        config.model, model.vocabulary.size, config.batch.sequence_length, config.image_tokenizer.image_length
    )

    def losses(parameters: nnx.State, batch: Batch) -> Float[Array, "B L"]:
        transformer = nnx.merge(model.graph, parameters)
        hidden = transformer(batch.tokens, batch.positions, batch.document_start, batch.image_positions)
        features, table = transformer.output_features(hidden), transformer.output_table
        chunks = loss_chunks(batch.targets.size, model.vocabulary.size, config.train.loss_chunks)
        return head_loss(features, table, batch.targets, batch.weights, 0.0, chunks)[1]

    compiled = jax.jit(
        losses,
        in_shardings=(shardings(abstract, model.mesh), batch_sharding(model.mesh)),
        out_shardings=NamedSharding(model.mesh, PartitionSpec()),
    )

    def on_its_mesh(parameters: nnx.State, batch: Batch) -> Array:
        with jax.set_mesh(model.mesh):
            return compiled(parameters, batch)

    return on_its_mesh


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
