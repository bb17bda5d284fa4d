"""Trains CLIP on pairs of a text and an image: the symmetric contrastive loss (arXiv 2103.00020, section 2.3)."""

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
from cm3leon_jax.counter_random import permutation_at
from cm3leon_jax.data.corpus.training_samples import PairSample
from cm3leon_jax.encoders.clip.inputs import ClipTokenizer, ImageNormalization, normalized
from cm3leon_jax.encoders.clip.model import (
    Clip,
    ClipArchitecture,
    abstract_clip,
    eos_positions,
    initial_parameters,
    l2_normalize,
)
from cm3leon_jax.encoders.config import EncoderTrainingConfig
from cm3leon_jax.errors import RestartError, UserError
from cm3leon_jax.models.sharding import BATCH_SPEC, batch_sharding, shardings
from cm3leon_jax.models.weight_decay import decays
from cm3leon_jax.preemption import PreemptionHandler
from cm3leon_jax.progress import TrainingLog

KEPT_CHECKPOINTS = 2

Metrics = dict[str, Float[Array, ""]]


class TrainingState(NamedTuple):
    """All that a run needs to go on."""

    step: Int[Array, ""]
    parameters: nnx.State
    optimizer: optax.OptState


def contrastive_loss(
    texts: Float[Array, "B E"], images: Float[Array, "B E"], scale: Float[Array, ""], mesh: Mesh | None = None
) -> Float[Array, ""]:
    """Mean cross-entropy of finding each text's image and each image's text among all of the batch.

    Args:
      texts: of unit norm.
      images: of unit norm, in the same order.
      scale: the inverse temperature.
      mesh: splits the rows of the matrix of all products, as it does the batch.
    """
    products = scale * texts @ images.T
    if mesh is not None:
        products = jax.lax.with_sharding_constraint(products, NamedSharding(mesh, PartitionSpec(*BATCH_SPEC, None)))
    right = jnp.diagonal(products)
    of_images, of_texts = jax.nn.logsumexp(products, axis=1), jax.nn.logsumexp(products, axis=0)
    return jnp.mean((of_images + of_texts) / 2 - right)


def learning_rate(training: EncoderTrainingConfig) -> optax.Schedule:
    """Linear from 0 to the peak over the warm-up, then half a cosine to 0."""
    warmup = min(training.warmup_steps, training.num_steps)
    peak = training.peak_learning_rate
    decay = optax.cosine_decay_schedule(peak, max(1, training.num_steps - warmup))
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, warmup)), decay], [warmup])


class ClipTrainStep:
    """The compiled functions of a run on one mesh, and the abstract state to restore into."""

    def __init__(
        self, architecture: ClipArchitecture, training: EncoderTrainingConfig, read_at: int | None, mesh: Mesh
    ) -> None:
        """`read_at` is what `clip.eos_positions` is asked for."""
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

        def loss(parameters: nnx.State, tokens: Array, images: Array) -> Float[Array, ""]:
            model: Clip = nnx.merge(graph, parameters)
            texts = l2_normalize(model.text(tokens, eos_positions(tokens, read_at)))
            seen = l2_normalize(model.image(normalized(images, architecture.resolution, ImageNormalization())))
            return contrastive_loss(texts, seen, jnp.exp(model.logit_scale[...]), mesh)

        def step(
            state: TrainingState, tokens: Int[Array, "B T"], images: UInt8[Array, "B R R 3"]
        ) -> tuple[TrainingState, Metrics]:
            value, gradients = jax.value_and_grad(loss)(state.parameters, tokens, images)
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
    architecture: ClipArchitecture, training: EncoderTrainingConfig, read_at: int | None, mesh: Mesh
) -> ClipTrainStep:
    """The same functions for the same values: a continuation compiles nothing again."""
    return ClipTrainStep(architecture, training, read_at, mesh)


def places_at(num_pairs: int, training: EncoderTrainingConfig, step: int) -> Int64[np.ndarray, "B"]:
    """Which pairs the batch of a step holds, from the seed and the step alone; every pair comes once a pass."""
    index = step * training.batch_size + np.arange(training.batch_size)
    places = permutation_at(index % num_pairs, num_pairs, training.seed, index // num_pairs)
    # In order of place, which is kinder to a memory-mapped file; the loss does not care.
    return np.sort(places)


def train(
    architecture: ClipArchitecture,
    training: EncoderTrainingConfig,
    tokenizer: ClipTokenizer,
    pairs: PairSample,
    mesh: Mesh,
    checkpoints: Path,
    metrics_file: Path,
    check_no_others: Callable[[dict[str, Any]], None],
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
      check_no_others: called with the record of a checkpoint that is there already.
      record: kept with each checkpoint.

    Raises:
      UserError: if the checkpoints are of another config, or the loss or the parameters are no longer finite.
      RestartError: if it was told to stop, and has saved.
    """
    compiled = compiled_step(architecture, training, tokenizer.special_tokens.read_at, mesh)
    rows = batch_sharding(mesh)
    with Checkpoints(checkpoints, keep=KEPT_CHECKPOINTS) as kept, PreemptionHandler() as stop:
        latest = kept.latest_step
        if latest is None:
            state = compiled.init()
        else:
            check_no_others(kept.meta(latest))
            state = kept.restore(latest, compiled.abstract_state)
        first = latest or 0
        if first > training.num_steps:
            raise UserError(
                f"{checkpoints} is at step {first:,}, beyond config.encoder_training.num_steps "
                f"{training.num_steps:,}: raise it, or delete the folder"
            )
        log = TrainingLog(
            "encoder",
            metrics_file,
            first,
            training.num_steps,
            training.log_every,
            (training.batch_size, "pairs"),
            "lower config.encoder_training.peak_learning_rate, or lengthen warmup_steps, and run it again with "
            "another config.encoder.path",
            lambda values: f"loss {values['loss']:.3f}, temperature {values['temperature']:.3f}",
        )
        try:
            for step in range(first, training.num_steps):
                places = places_at(len(pairs.texts), training, step)
                tokens, _ = tokenizer([pairs.texts[place] for place in places])
                state, metrics = compiled.step(state, *jax.device_put((tokens, pairs.images[places]), rows))
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
