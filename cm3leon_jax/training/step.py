"""The transformer's training step: (state, batch) -> (state, metrics), compiled for a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Num

from cm3leon_jax import accelerators
from cm3leon_jax.checkpoints import abstract_on
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.models.sharding import BATCH_AXES, batch_sharding, shardings, with_logical_constraint
from cm3leon_jax.models.transformer import Transformer, abstract_model
from cm3leon_jax.training.loss import LossSums, head_loss, loss_sums
from cm3leon_jax.training.optimizer import optimizer
from cm3leon_jax.training.platforms import compiler_options
from cm3leon_jax.training.rate_factors import RateFactors
from cm3leon_jax.training.schedules import learning_rate
from cm3leon_jax.training.spikes import SpikeState, select
from cm3leon_jax.vocabulary import Vocabulary

# {"parameters": nnx.State, "optimizer": optax's state, "step": number of finished steps, "spikes": SpikeState}
TrainState = dict[str, Any]
Metrics = dict[str, Num[Array, ""]]

# Bytes of logits at a time on a device that the table of accelerators lacks: on a CPU, what fits its caches is fastest.
_LOGITS_BYTES = 32 << 20


def objective_loss(
    graph: nnx.GraphDef,
    parameters: nnx.State,
    batch: Batch,
    vocabulary: Vocabulary,
    total_weight: Float[Array, ""] | None = None,
    z_loss: float = 0.0,
    least_chunks: int = 0,
) -> tuple[Float[Array, ""], LossSums]:
    """The loss of a batch, to be differentiated, and its summed cross-entropy.

    `total_weight` is what the weighted sum is divided by, where the batch is a part of a larger one.
    """
    total = batch.weights.sum() if total_weight is None else total_weight
    weights = batch.weights / jnp.where(total > 0, total, 1)
    loss, losses = weighted_losses(graph, parameters, batch, weights, vocabulary, z_loss, least_chunks)
    return loss, loss_sums(losses, batch.targets, batch.weights, vocabulary)


def weighted_losses(
    graph: nnx.GraphDef,
    parameters: nnx.State,
    batch: Batch,
    weights: Float[Array, "B L"],
    vocabulary: Vocabulary,
    z_loss: float = 0.0,
    least_chunks: int = 0,
) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
    """The weighted sum of the tokens' losses, and -log p of each target, in nats: `head_loss` of a model's output."""
    model = nnx.merge(graph, parameters)
    hidden = model(batch.tokens, batch.positions, batch.document_start, batch.image_positions)
    features, table = model.output_features(hidden), model.output_table
    num_chunks = loss_chunks(batch.targets.size, vocabulary.size, least_chunks)
    return head_loss(features, table, batch.targets, weights, z_loss, num_chunks)


class TrainStep:
    """The compiled functions of a run on one mesh, and the abstract state to restore into."""

    def __init__(self, config: Config, vocabulary: Vocabulary, mesh: Mesh) -> None:
        length, train, image_length = config.batch.sequence_length, config.train, config.image_tokenizer.image_length
        self.graph, abstract_parameters = abstract_model(config.model, vocabulary.size, length, image_length)
        self._mesh, self._batch_shape = mesh, (config.batch.batch_size, length)
        factors = RateFactors(config.optimizer, vocabulary, abstract_parameters)
        update_rule = optimizer(config.optimizer, config.num_steps, factors.scale())
        schedule = learning_rate(config.optimizer, config.num_steps)

        def init() -> TrainState:
            model = Transformer(config.model, vocabulary.size, length, nnx.Rngs(train.seed), image_length)
            parameters = nnx.state(model)
            return {
                "parameters": parameters,
                "optimizer": update_rule.init(factors.split(parameters)[0]),
                "step": jnp.zeros((), jnp.int32),
                "spikes": SpikeState.initial(),
            }

        abstract = jax.eval_shape(init)
        state_shardings = shardings(abstract, mesh)
        trained_shardings, _ = factors.split(state_shardings["parameters"])
        rows, everywhere = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

        def gradients(
            trained: nnx.State, frozen: nnx.State, batch: Batch, total_weight: Array
        ) -> tuple[nnx.State, LossSums]:
            def loss(trained: nnx.State) -> tuple[Float[Array, ""], LossSums]:
                parameters = factors.join(trained, frozen)
                return objective_loss(
                    self.graph, parameters, batch, vocabulary, total_weight, train.z_loss, train.loss_chunks
                )

            grads, sums = jax.grad(loss, has_aux=True)(trained)
            return jax.lax.with_sharding_constraint(factors.of_trained_rows(grads), trained_shardings), sums

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            total_weight = batch.weights.sum()
            trained, frozen = factors.split(state["parameters"])
            grads, sums = accumulated(
                lambda part: gradients(trained, frozen, part, total_weight), batch, train.num_microbatches
            )
            norm, spikes = optax.tree.norm(grads), state["spikes"]
            apply = spikes.should_apply(sums.mean, norm, config.recovery)
            updates, optimizer_state = update_rule.update(grads, state["optimizer"], trained)
            updated = factors.with_frozen_rows(optax.apply_updates(trained, updates), trained)
            after = {
                "parameters": factors.join(select(apply, updated, trained), frozen),
                "optimizer": select(apply, optimizer_state, state["optimizer"]),
                "step": state["step"] + 1,
                "spikes": spikes.update(norm, apply),
            }
            metrics = {
                **sums.by_modality(),
                "learning_rate": jnp.asarray(schedule(spikes.num_applied), jnp.float32),
                "grad_norm": norm,
                "skipped_steps": after["spikes"].num_skipped,
                "skipped_in_a_row": after["spikes"].skipped_in_a_row,
            }
            return after, metrics

        self.abstract_state = abstract_on(abstract, state_shardings)
        options = compiler_options(mesh.devices.flat[0].device_kind, mesh.size)
        self._init = jax.jit(init, out_shardings=state_shardings)
        self._jitted_step = jax.jit(
            step,
            in_shardings=(state_shardings, rows),
            out_shardings=(state_shardings, everywhere),
            donate_argnums=0,
            compiler_options=options,
        )
        self._step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]] = self._jitted_step

    def compile(self) -> None:
        """Compiles the step before its first use, so that the time it takes is known."""
        self._step = self.lowered().compile()

    def init(self) -> TrainState:
        """A fresh state, of which every device makes its own part."""
        with jax.set_mesh(self._mesh):
            return self._init()

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The state after one step on a global batch, and its metrics; the state before is donated."""
        with jax.set_mesh(self._mesh):
            return self._step(state, batch)

    def lowered(self) -> jax.stages.Lowered:
        """The step before its compilation, for devices that need not be here."""
        rows = batch_sharding(self._mesh)
        batch = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(self._batch_shape, array.dtype, sharding=rows),
            Batch.padding(1, 1, pad=0),
        )
        with jax.set_mesh(self._mesh):
            return self._jitted_step.lower(self.abstract_state, batch)


def accumulated(
    gradients: Callable[[Batch], tuple[nnx.State, LossSums]], batch: Batch, num_microbatches: int
) -> tuple[nnx.State, LossSums]:
    """The sum of `gradients` over the microbatches of a batch, one after the other.

    Each takes some rows of every device, so that none moves.
    """
    if num_microbatches == 1:
        return gradients(batch)

    def split(array: Num[Array, "B L"]) -> Num[Array, "n b L"]:
        parts = jnp.swapaxes(array.reshape(-1, num_microbatches, array.shape[1]), 0, 1)
        return with_logical_constraint(parts, None, "batch", None)

    parts = jax.tree.map(split, batch)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients(part)), None

    first = jax.tree.map(lambda array: array[0], parts)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradients, first))
    return jax.lax.scan(add, zeros, parts)[0]


def loss_chunks(num_tokens: int, vocabulary_size: int, least: int = 0) -> int:
    """The number of equal chunks of a device's tokens (`num_tokens` are on the whole mesh), one after the other.

    At least so many; with 0, so many that their float32 logits take at most an eighth of a device's memory.
    """
    mesh = jax.sharding.get_abstract_mesh()
    tokens = num_tokens // math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    logits_bytes = 4 * tokens * vocabulary_size // mesh.shape["tensor"]
    chip = accelerators.by_device_kind(mesh.abstract_device.device_kind)
    budget = chip.hbm_bytes / 8 if chip else _LOGITS_BYTES
    least = least or math.ceil(logits_bytes / budget)
    return next(n for n in range(1, tokens + 1) if tokens % n == 0 and n >= min(least, tokens))
