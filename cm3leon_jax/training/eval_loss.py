"""The loss on held-out documents, from parameters alone: no optimizer is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.sharding import batch_sharding, on_mesh, shardings
from cm3leon_jax.models.transformer import abstract_model
from cm3leon_jax.training.loss import LossSums, without_absent
from cm3leon_jax.training.step import objective_loss, weighted_losses
from cm3leon_jax.vocabulary import Vocabulary

EvalStep = Callable[[nnx.State, Batch], LossSums]
TokenLosses = Callable[[nnx.State, Batch], Float[Array, "B L"]]
T = TypeVar("T")


def make_eval_step(
    model: ModelConfig,
    vocabulary: Vocabulary,
    sequence_length: int,
    mesh: Mesh,
    loss_chunks: int = 0,
    image_length: int | None = None,
) -> EvalStep:
    """A compiled function: (parameters, batch) -> summed cross-entropy."""
    graph, abstract = abstract_model(model, vocabulary.size, sequence_length, image_length)

    def evaluate(parameters: nnx.State, batch: Batch) -> LossSums:
        return objective_loss(graph, parameters, batch, vocabulary, least_chunks=loss_chunks)[1]

    return replicated(evaluate, abstract, mesh)


def make_token_losses(
    model: ModelConfig,
    vocabulary: Vocabulary,
    sequence_length: int,
    mesh: Mesh,
    loss_chunks: int = 0,
    image_length: int | None = None,
) -> TokenLosses:
    """A compiled function: (parameters, batch) -> -log p of each target, in nats."""
    graph, abstract = abstract_model(model, vocabulary.size, sequence_length, image_length)

    def losses(parameters: nnx.State, batch: Batch) -> Float[Array, "B L"]:
        return weighted_losses(graph, parameters, batch, batch.weights, vocabulary, least_chunks=loss_chunks)[1]

    return replicated(losses, abstract, mesh)


def replicated(
    function: Callable[[nnx.State, Batch], T], abstract: nnx.State, mesh: Mesh
) -> Callable[[nnx.State, Batch], T]:
    """Compiles a function of sharded parameters and a sharded batch, whose result every device gets."""
    compiled = jax.jit(
        function,
        in_shardings=(shardings(abstract, mesh), batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

    def on_its_mesh(parameters: nnx.State, batch: Batch) -> T:
        with jax.set_mesh(mesh):
            return compiled(parameters, batch)

    return on_its_mesh


def eval_loss(
    eval_step: EvalStep, parameters: nnx.State, source: BatchSource, num_batches: int, mesh: Mesh
) -> dict[str, float]:
    """Nats per token over the first batches of a split, always the same ones: all, text and special tokens, images.

    A modality without targets has no loss.
    """
    parts = [eval_step(parameters, on_mesh(source[index], mesh)) for index in range(max(1, num_batches))]
    total = jax.tree.map(lambda *sums: sum(sums), *jax.device_get(parts))
    measured = without_absent({name: float(value) for name, value in total.by_modality().items()})
    return {f"eval_{name}": value for name, value in measured.items()}
