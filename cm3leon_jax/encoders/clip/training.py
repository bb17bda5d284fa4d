"""Trains CLIP on pairs of a text and an image: the symmetric contrastive loss (arXiv 2103.00020, section 2.3)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Int64, UInt8

from cm3leon_jax.checkpoints import abstract_on, flat
from cm3leon_jax.config import Config
from cm3leon_jax.counter_random import permutation_at
from cm3leon_jax.data.corpus.training_samples import PairSample, load_pair_sample
from cm3leon_jax.distributed import READY_FILE, run_on_coordinator
from cm3leon_jax.encoders.base import Encoder
from cm3leon_jax.encoders.clip.config import ClipConfig, ClipTrainingConfig
from cm3leon_jax.encoders.clip.encoder import ClipEncoder
from cm3leon_jax.encoders.clip.inputs import ClipTokenizer, ImageNormalization, SpecialTokenIds, normalize_images
from cm3leon_jax.encoders.clip.model import (
    Clip,
    ClipArchitecture,
    abstract_clip,
    eos_positions,
    initial_clip_parameters,
    normalize_rows,
)
from cm3leon_jax.encoders.training import LOG_NAME, split_pairs
from cm3leon_jax.errors import UserError
from cm3leon_jax.models.sharding import (
    BATCH_SPEC,
    batch_sharding,
    global_array,
    make_mesh,
    on_mesh,
    process_local_rows,
    shardings,
)
from cm3leon_jax.models.weight_decay import decays
from cm3leon_jax.training import trainer
from cm3leon_jax.training.config import FREE_VALUES
from cm3leon_jax.training.run import Start, TrainingRun
from cm3leon_jax.training.schedules import learning_rate
from cm3leon_jax.vocabulary import Vocabulary

# Rows of a table are rounded up to a multiple of this, so that it shards and tiles well.
_ROWS = 128

Metrics = dict[str, Float[Array, ""]]


class ClipState(NamedTuple):
    """All that a run needs to go on."""

    step: Int[Array, ""]
    parameters: nnx.State
    optimizer: optax.OptState


def contrastive_loss(
    texts: Float[Array, "B E"], images: Float[Array, "B E"], scale: Float[Array, ""], mesh: Mesh | None = None
) -> Float[Array, ""]:
    """Mean cross-entropy of finding each text's image and each image's text, of unit norm, among all of the batch.

    `scale` is the inverse temperature; a mesh splits the rows of the matrix of all products, as it does the batch.
    """
    products = scale * texts @ images.T
    if mesh is not None:
        products = jax.lax.with_sharding_constraint(products, NamedSharding(mesh, PartitionSpec(*BATCH_SPEC, None)))
    right = jnp.diagonal(products)
    of_images, of_texts = jax.nn.logsumexp(products, axis=1), jax.nn.logsumexp(products, axis=0)
    return jnp.mean((of_images + of_texts) / 2 - right)


class ClipTrainStep:
    """The compiled functions of a run on one mesh, and the abstract state to restore into."""

    def __init__(
        self, architecture: ClipArchitecture, training: ClipTrainingConfig, read_at: int | None, mesh: Mesh
    ) -> None:
        """`read_at` is what `clip.eos_positions` is asked for."""
        graph: nnx.GraphDef = nnx.split(abstract_clip(architecture))[0]
        schedule = learning_rate(training, training.num_steps, "cosine")
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
            texts = normalize_rows(model.text(tokens, eos_positions(tokens, read_at)))
            seen = normalize_rows(model.image(normalize_images(images, architecture.resolution, ImageNormalization())))
            return contrastive_loss(texts, seen, jnp.exp(model.logit_scale[...]), mesh)

        def step(
            state: ClipState, tokens: Int[Array, "B T"], images: UInt8[Array, "B R R 3"]
        ) -> tuple[ClipState, Metrics]:
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
            return ClipState(state.step + 1, parameters, optimizer), metrics

        def fresh() -> ClipState:
            parameters = nnx.state(Clip(architecture))
            return ClipState(jnp.zeros((), jnp.int32), parameters, update_rule.init(parameters))

        def init() -> ClipState:
            parameters = initial_clip_parameters(architecture, training.initial_temperature, training.seed)
            parameters = jax.tree.map(global_array, parameters, state_shardings.parameters)
            return zeros()._replace(parameters=parameters)

        abstract = jax.eval_shape(fresh)
        state_shardings, rows = shardings(abstract, mesh), batch_sharding(mesh)
        zeros: Callable[[], ClipState] = jax.jit(fresh, out_shardings=state_shardings)
        self.abstract_state = abstract_on(abstract, state_shardings)
        self.init = init
        self.gradients = jax.jit(jax.value_and_grad(loss), in_shardings=(state_shardings.parameters, rows, rows))
        self.step: Callable[..., tuple[ClipState, Metrics]] = jax.jit(
            step,
            in_shardings=(state_shardings, rows, rows),
            out_shardings=(state_shardings, NamedSharding(mesh, PartitionSpec())),
            donate_argnums=0,
        )


# A continuation compiles nothing again.
compiled_step = functools.cache(ClipTrainStep)


class ClipTrainer:
    """Trains a CLIP on the pairs of a mixture, on the devices of all processes."""

    is_distributed = True

    def __init__(self, config: Config) -> None:
        assert isinstance(config.encoder, ClipConfig)
        self._config, self._encoder = config, config.encoder
        self._vocabulary = Vocabulary.load(config.vocabulary.path)
        self.record = {"vocabulary": self._vocabulary.fingerprint}

    def train(self, workdir: Path, record: dict[str, Any]) -> tuple[Encoder, PairSample] | None:
        """The trained encoder, and pairs to measure it on.

        Raises a `UserError` if there are too few pairs, or a value of the config does not fit them.
        """
        vocabulary, training, path = self._vocabulary, self._encoder.training, Path(self._encoder.path)
        mesh = make_mesh(self._config.mesh)
        num_parts = mesh.shape["replica"] * mesh.shape["fsdp"]
        if training.batch_size % num_parts:
            raise UserError(
                f"config.encoder.training.batch_size is {training.batch_size}: it must be a multiple of the "
                f"{num_parts} parts that the mesh axes replica and fsdp cut it into"
            )
        sample = (self._config.corpus, path / "sample", training.num_pairs, self._encoder.resolution)
        run_on_coordinator(lambda: load_pair_sample(*sample), path / READY_FILE)
        pairs, held_out = split_pairs(load_pair_sample(*sample))
        if training.batch_size > len(pairs.texts):
            raise UserError(
                f"config.encoder.training.batch_size is {training.batch_size}: at most the {len(pairs.texts)} pairs "
                "that there are to train on, or a pair would be compared with itself"
            )
        # Texts have no ids beyond the text tokens.
        rows = -(-vocabulary.first_image_code // _ROWS) * _ROWS
        architecture = ClipArchitecture.of(self._encoder, rows)
        special_tokens = SpecialTokenIds(vocabulary.start, vocabulary.end, vocabulary.pad)
        tokenizer_json = (Path(self._config.vocabulary.path) / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = ClipTokenizer(tokenizer_json, special_tokens, architecture.max_text_tokens)
        run = training_run(architecture, training, tokenizer, pairs, mesh, path / "checkpoints", workdir, record)
        result = trainer.train(run)
        if result.is_stopped:
            return None
        weights = whole_parameters(result.state)
        return ClipEncoder(architecture, weights, tokenizer_json, special_tokens, ImageNormalization()), held_out


def training_run(
    architecture: ClipArchitecture,
    training: ClipTrainingConfig,
    tokenizer: ClipTokenizer,
    pairs: PairSample,
    mesh: Mesh,
    checkpoints: Path,
    workdir: Path,
    record: Mapping[str, Any],
) -> TrainingRun:
    """The description for the trainer; `record` is what a continuation must share with its start."""
    compiled = compiled_step(architecture, training, tokenizer.special_tokens.read_at, mesh)
    return TrainingRun(
        name="encoder",
        num_steps=training.num_steps,
        init=lambda checkpoints: Start(0, compiled.init()),
        abstract_state=compiled.abstract_state,
        step=lambda state, batch: compiled.step(state, *batch),
        batches=lambda first, stop, hint: batches(pairs, tokenizer, training, mesh, first, stop),
        identity=record,
        may_change=FREE_VALUES,
        length_field=f"config.encoder.training.num_steps {training.num_steps:,}",
        fix="lower config.encoder.training.peak_learning_rate, or lengthen warmup_steps, and run it again with another "
        "config.encoder.path",
        workdir=workdir,
        checkpoints=checkpoints,
        save_every=training.save_every,
        log_every=training.log_every,
        log_name=LOG_NAME,
        config=record,
        describe=lambda values: (
            f"loss {values['loss']:.3f}, temperature {values['temperature']:.3f}, "
            f"{values['pairs_per_second']:.0f} pairs/s"
        ),
        rates=lambda seconds: {"pairs_per_second": training.batch_size / seconds},
        restore_finished=True,
    )


def whole_parameters(state: ClipState) -> dict[str, np.ndarray]:
    """The parameters by name, whole on every process; all of them call this."""
    return {
        name: np.asarray(multihost_utils.process_allgather(value, tiled=True))
        for name, value in flat(nnx.to_pure_dict(state.parameters)).items()
    }


def batches(
    pairs: PairSample, tokenizer: ClipTokenizer, training: ClipTrainingConfig, mesh: Mesh, first: int, stop: int
) -> Iterator[tuple[Int[Array, "B T"], UInt8[Array, "B R R 3"]]]:
    """Token ids and images of batches `first` to `stop` - 1, on the mesh."""
    local_rows = process_local_rows(training.batch_size, mesh)
    for index in range(first, stop):
        chosen = batch_indices(len(pairs.texts), training, index)[local_rows]
        tokens, _ = tokenizer([pairs.texts[pair] for pair in chosen])
        yield on_mesh((tokens, pairs.images[chosen]), mesh)


def batch_indices(num_pairs: int, training: ClipTrainingConfig, step: int) -> Int64[np.ndarray, "B"]:
    """Indices of the pairs in a batch, from the seed and the batch's number alone; every pair comes once per epoch."""
    position = step * training.batch_size + np.arange(training.batch_size)
    indices = permutation_at(position % num_pairs, num_pairs, training.seed, position // num_pairs)
    # Sorted, which is kinder to a memory-mapped file; the loss does not care.
    return np.sort(indices)
