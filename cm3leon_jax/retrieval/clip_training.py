"""Trains CLIP on pairs of a text and a picture: the symmetric contrastive loss (arXiv 2103.00020, section 2.3)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Int64, UInt8

from cm3leon_jax.checkpoints import Checkpoints, abstract_on, flat
from cm3leon_jax.config import BiEncoderTrainingConfig
from cm3leon_jax.data.counter_random import permutation_at
from cm3leon_jax.data.pair_sample import PairSample
from cm3leon_jax.errors import RestartError, UserError
from cm3leon_jax.model.sharding import BATCH_SPEC, batch_sharding, shardings
from cm3leon_jax.model.weight_decay import decays
from cm3leon_jax.progress import TrainingLog
from cm3leon_jax.retrieval.clip import Clip, ClipArchitecture, abstract_clip, end_places, initial_parameters, unit
from cm3leon_jax.retrieval.clip_inputs import ClipTokenizer, Colours, normalised
from cm3leon_jax.stop_signal import StopSignal

KEPT_CHECKPOINTS = 2

Metrics = dict[str, Float[Array, ""]]


class TrainingState(NamedTuple):
    """All that a run needs to go on."""

    step: Int[Array, ""]
    parameters: nnx.State
    optimizer: optax.OptState


def contrastive_loss(
    texts: Float[Array, "B E"], pictures: Float[Array, "B E"], scale: Float[Array, ""], mesh: Mesh | None = None
) -> Float[Array, ""]:
    """Mean cross-entropy of finding each text's picture and each picture's text among all of the batch.

    Args:
      texts: of unit norm.
      pictures: of unit norm, in the same order.
      scale: the inverse temperature.
      mesh: splits the rows of the matrix of all products, as it does the batch.
    """
    products = scale * texts @ pictures.T
    if mesh is not None:
        products = jax.lax.with_sharding_constraint(products, NamedSharding(mesh, PartitionSpec(*BATCH_SPEC, None)))
    right = jnp.diagonal(products)
    of_pictures, of_texts = jax.nn.logsumexp(products, axis=1), jax.nn.logsumexp(products, axis=0)
    return jnp.mean((of_pictures + of_texts) / 2 - right)


def learning_rate(training: BiEncoderTrainingConfig) -> optax.Schedule:
    """Linear from 0 to the peak over the warm-up, then half a cosine to 0."""
    warmup = min(training.warmup_steps, training.num_steps)
    peak = training.peak_learning_rate
    decay = optax.cosine_decay_schedule(peak, max(1, training.num_steps - warmup))
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, warmup)), decay], [warmup])


class ClipTrainStep:
    """The compiled functions of a run on one mesh, and the abstract state to restore into."""

    def __init__(
        self, architecture: ClipArchitecture, training: BiEncoderTrainingConfig, read_at: int | None, mesh: Mesh
    ) -> None:
        """`read_at` is what `clip.end_places` is asked for."""
        graph: nnx.GraphDef = nnx.split(abstract_clip(architecture))[0]
        schedule = learning_rate(training)
        update_rule = optax.adamw(
            schedule,
            b1=training.beta1,
            b2=training.beta2,
            eps=training.epsilon,
            weight_decay=training.weight_decay,
            mask=decays,
        )
        highest_scale = -math.log(training.lowest_temperature)

        def loss(parameters: nnx.State, tokens: Array, pictures: Array) -> Float[Array, ""]:
            model: Clip = nnx.merge(graph, parameters)
            texts = unit(model.text(tokens, end_places(tokens, read_at)))
            seen = unit(model.image(normalised(pictures, architecture.resolution, Colours())))
            return contrastive_loss(texts, seen, jnp.exp(model.logit_scale[...]), mesh)

        def step(
            state: TrainingState, tokens: Int[Array, "B T"], pictures: UInt8[Array, "B R R 3"]
        ) -> tuple[TrainingState, Metrics]:
            value, gradients = jax.value_and_grad(loss)(state.parameters, tokens, pictures)
            updates, optimizer = update_rule.update(gradients, state.optimizer, state.parameters)
            parameters = optax.apply_updates(state.parameters, updates)
            scale: Any = parameters["logit_scale"]
            clamped = jnp.minimum(scale.get_value(), highest_scale)
            parameters["logit_scale"] = scale.replace(clamped)
            metrics = {
                "loss": value,
                "temperature": jnp.exp(-clamped),
                "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
                "grad_norm": optax.global_norm(gradients),
            }
            return TrainingState(state.step + 1, parameters, optimizer), metrics

        def fresh() -> TrainingState:
            parameters = nnx.state(Clip(architecture))
            return TrainingState(jnp.zeros((), jnp.int32), parameters, update_rule.init(parameters))

        abstract = jax.eval_shape(fresh)
        state_shardings, rows = shardings(abstract, mesh), batch_sharding(mesh)

        zeros = jax.jit(fresh, out_shardings=state_shardings)

        def init() -> TrainingState:
            parameters = initial_parameters(architecture, training.initial_temperature, training.seed)
            state: TrainingState = zeros()
            return state._replace(parameters=jax.device_put(parameters, state_shardings.parameters))

        self.abstract_state = abstract_on(abstract, state_shardings)
        self.init: Callable[[], TrainingState] = init
        self.gradients = jax.jit(jax.value_and_grad(loss), in_shardings=(state_shardings.parameters, rows, rows))
        self.step: Callable[..., tuple[TrainingState, Metrics]] = jax.jit(
            step, in_shardings=(state_shardings, rows, rows), out_shardings=(state_shardings, None), donate_argnums=0
        )


@functools.cache
def compiled_step(
    architecture: ClipArchitecture, training: BiEncoderTrainingConfig, read_at: int | None, mesh: Mesh
) -> ClipTrainStep:
    """The same functions for the same values: a continuation compiles nothing again."""
    return ClipTrainStep(architecture, training, read_at, mesh)


def places_at(num_pairs: int, training: BiEncoderTrainingConfig, step: int) -> Int64[np.ndarray, "B"]:
    """Which pairs the batch of a step holds, from the seed and the step alone; every pair comes once a pass."""
    index = step * training.batch_size + np.arange(training.batch_size)
    places = permutation_at(index % num_pairs, num_pairs, training.seed, index // num_pairs)
    # In order of place, which is kinder to a memory-mapped file; the loss does not care.
    return np.sort(places)


def train(
    architecture: ClipArchitecture,
    training: BiEncoderTrainingConfig,
    tokenizer: ClipTokenizer,
    pairs: PairSample,
    mesh: Mesh,
    checkpoints: Path,
    metrics_file: Path,
    refuse_others: Callable[[dict[str, Any]], None],
    record: dict[str, Any],
) -> dict[str, np.ndarray]:
    """From the last checkpoint, or the seed, to the last step; returns the parameters by name.

    Args:
      architecture: shapes.
      training: values.
      tokenizer: of the texts.
      pairs: to learn from.
      mesh: all devices; every pair of a batch is held against every other, whatever device it is on.
      checkpoints: folder.
      metrics_file: JSON lines.
      refuse_others: called with the record of a checkpoint that is there already.
      record: kept with each checkpoint.

    Raises:
      UserError: if the checkpoints are of another config, or the loss or the parameters are no longer finite.
      RestartError: if it was told to stop, and has saved.
    """
    compiled = compiled_step(architecture, training, tokenizer.marks.read_at, mesh)
    rows = batch_sharding(mesh)
    with Checkpoints(checkpoints, keep=KEPT_CHECKPOINTS) as kept, StopSignal() as stop:
        latest = kept.latest_step
        if latest is None:
            state = compiled.init()
        else:
            refuse_others(kept.meta(latest))
            state = kept.restore(latest, compiled.abstract_state)
        first = latest or 0
        if first > training.num_steps:
            raise UserError(
                f"{checkpoints} is at step {first:,}, beyond config.bi_encoder_training.num_steps "
                f"{training.num_steps:,}: raise it, or delete the folder"
            )
        log = TrainingLog(
            "bi-encoder",
            metrics_file,
            first,
            training.num_steps,
            training.log_every,
            (training.batch_size, "pairs"),
            "lower config.bi_encoder_training.peak_learning_rate, or lengthen warmup_steps, and run it again with "
            "another config.bi_encoder.path",
            lambda values: f"loss {values['loss']:.3f}, temperature {values['temperature']:.3f}",
        )
        try:
            for step in range(first, training.num_steps):
                places = places_at(len(pairs.texts), training, step)
                tokens, _ = tokenizer([pairs.texts[place] for place in places])
                state, metrics = compiled.step(state, *jax.device_put((tokens, pairs.pictures[places]), rows))
                done = step + 1
                is_last = done == training.num_steps
                stopping = stop.is_due() and not is_last
                due = done % training.save_every == 0 or is_last or stopping
                log.step(done, metrics, force=due)
                if due:
                    with log.saving(done):
                        kept.save(done, state, record)
                if stopping:
                    raise RestartError(f"stopped and saved at step {done:,}; run the same command again to continue")
        finally:
            log.close()
    return {name: np.asarray(value) for name, value in flat(nnx.to_pure_dict(state.parameters)).items()}
