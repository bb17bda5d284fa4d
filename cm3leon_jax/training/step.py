"""One training step as a plain function of (state, batch), and the state it works on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from cm3leon_jax.checkpoints import abstract_on
from cm3leon_jax.config import Config
from cm3leon_jax.data import batches
from cm3leon_jax.model.sharding import batch_sharding, shardings
from cm3leon_jax.model.transformer import Transformer, abstract_model
from cm3leon_jax.training.loss import LossSums, loss_sums
from cm3leon_jax.training.optimizer import learning_rate, optimizer
from cm3leon_jax.vocabulary import Vocabulary

# {"parameters": nnx.State, "optimizer": optax's state, "step": number of finished steps}
TrainState = dict[str, Any]
Batch = dict[str, Int[Array, "B L"]]
Metrics = dict[str, Float[Array, ""]]


def on_mesh(batch: batches.Batch, mesh: Mesh) -> Batch:
    """A global batch from every process's own rows."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.asdict().items()}


def objective_loss(graph: nnx.GraphDef, parameters: nnx.State, batch: Batch, vocabulary: Vocabulary) -> LossSums:
    """Summed cross-entropy of a batch."""
    model = nnx.merge(graph, parameters)
    hidden = model(batch["tokens"], batch["positions"], batch["document_start"], batch["picture_places"])
    return loss_sums(model.logits(hidden), batch["targets"], vocabulary)


class TrainStep:
    """The compiled functions of a run on one mesh, and the abstract state to restore into."""

    def __init__(self, config: Config, vocabulary: Vocabulary, mesh: Mesh) -> None:
        length = config.batch.sequence_length
        self.graph, _ = abstract_model(config.model, vocabulary.size, length)
        update_rule = optimizer(config.optimizer, config.num_steps)
        schedule = learning_rate(config.optimizer, config.num_steps)

        def init() -> TrainState:
            parameters = nnx.state(Transformer(config.model, vocabulary.size, length, nnx.Rngs(config.train.seed)))
            return {
                "parameters": parameters,
                "optimizer": update_rule.init(parameters),
                "step": jnp.zeros((), jnp.int32),
            }

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            def loss(parameters: nnx.State) -> tuple[Float[Array, ""], LossSums]:
                sums = objective_loss(self.graph, parameters, batch, vocabulary)
                return sums.mean, sums

            (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(state["parameters"])
            updates, optimizer_state = update_rule.update(gradients, state["optimizer"], state["parameters"])
            metrics = {
                **sums.by_modality(),
                "learning_rate": jnp.asarray(schedule(state["step"]), jnp.float32),
                "grad_norm": optax.global_norm(gradients),
            }
            parameters = optax.apply_updates(state["parameters"], updates)
            return {"parameters": parameters, "optimizer": optimizer_state, "step": state["step"] + 1}, metrics

        def evaluate(parameters: nnx.State, batch: Batch) -> LossSums:
            return objective_loss(self.graph, parameters, batch, vocabulary)

        abstract = jax.eval_shape(init)
        state_shardings = shardings(abstract, mesh)
        rows = batch_sharding(mesh)
        self.abstract_state = abstract_on(abstract, state_shardings)
        self.init: Callable[[], TrainState] = jax.jit(init, out_shardings=state_shardings)
        self.step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]] = jax.jit(
            step, in_shardings=(state_shardings, rows), out_shardings=(state_shardings, None), donate_argnums=0
        )
        self.evaluate: Callable[[nnx.State, Batch], LossSums] = jax.jit(
            evaluate, in_shardings=(state_shardings["parameters"], rows)
        )
