"""Trains a VQGAN: its batches, and what the trainer needs to know of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt8

from cm3leon_jax.checkpoints import Checkpoints, abstract_on
from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.training import LOG_NAME
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig, VQGANTrainingConfig
from cm3leon_jax.image_tokenizers.vqgan.lpips import SMALLEST_SIDE, load_lpips
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.image_tokenizers.vqgan.train_step import VQGANModules, VQGANState, initial_state, make_train_step
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import global_array, make_mesh, on_mesh, process_local_rows
from cm3leon_jax.training import trainer
from cm3leon_jax.training.config import FREE_VALUES
from cm3leon_jax.training.run import Start, TrainingRun


class VQGANTrainer:
    """Trains a VQGAN on images, on the devices of all processes."""

    is_distributed = True

    def __init__(self, config: VQGANConfig) -> None:
        """Checks what can be checked before images are read."""
        training, self.config = config.training, config
        if training.batch_size % jax.device_count():
            raise UserError(
                f"config.image_tokenizer.training.batch_size is {training.batch_size}: "
                f"it must be a multiple of the {jax.device_count()} devices"
            )
        if training.perceptual_weight > 0 and config.resolution < SMALLEST_SIDE:
            raise UserError(
                f"config.image_tokenizer.resolution is {config.resolution}: LPIPS halves the side four times and needs "
                f"{SMALLEST_SIDE}; set config.image_tokenizer.training.perceptual_weight to 0"
            )

    def train(
        self, images: UInt8[np.ndarray, "n R R C"], workdir: Path, record: dict[str, Any]
    ) -> VQGANTokenizer | None:
        """The tokenizer after the last step."""
        result = trainer.train(self.run(images, workdir, record))
        return None if result.is_stopped else VQGANTokenizer(self.config, result.state.parameters)

    def run(
        self,
        images: UInt8[np.ndarray, "n R R C"],
        workdir: Path,
        record: Mapping[str, Any],
        devices: list[jax.Device] | None = None,
    ) -> TrainingRun:
        """The description for the trainer; `devices` are all by default."""
        training = self.config.training
        mesh = make_mesh(MeshConfig(replica=1), devices)
        modules, replicated = VQGANModules(self.config, training), NamedSharding(mesh, PartitionSpec())
        files = load_lpips(training.perceptual_weights_file) if training.perceptual_weight > 0 else None
        lpips_weights = jax.tree.map(partial(global_array, sharding=replicated), files)
        compiled_step = make_train_step(modules, mesh)

        def init(checkpoints: Checkpoints) -> Start:
            state = initial_state(modules, jnp.asarray(batch_at(images, training, 0)))
            return Start(0, jax.tree.map(lambda leaf: global_array(np.asarray(leaf), replicated), state))

        def step(state: VQGANState, batch: tuple[Array, bool]) -> tuple[VQGANState, dict[str, Array]]:
            return compiled_step(state, batch[0], lpips_weights, batch[1])

        first_batch = jax.ShapeDtypeStruct((training.batch_size, *images.shape[1:]), np.uint8)
        abstract = jax.eval_shape(partial(initial_state, modules), first_batch)
        return TrainingRun(
            name="image tokenizer",
            num_steps=training.num_steps,
            init=init,
            abstract_state=abstract_on(abstract, jax.tree.map(lambda _: replicated, abstract)),
            step=step,
            batches=lambda first, stop, hint: batches(images, training, mesh, first, stop),
            identity=record,
            may_change=FREE_VALUES,
            length_field=f"config.image_tokenizer.training.num_steps {training.num_steps:,}",
            fix="lower config.image_tokenizer.training.peak_learning_rate, or lengthen warmup_steps, and run it again "
            "with another config.image_tokenizer.path",
            workdir=workdir,
            checkpoints=Path(self.config.path) / "checkpoints",
            save_every=training.save_every,
            log_every=training.log_every,
            log_name=LOG_NAME,
            config=record,
            describe=_describe,
            rates=lambda seconds: {"images_per_second": training.batch_size / seconds},
            restore_finished=True,
        )


def batches(
    images: UInt8[np.ndarray, "n R R C"], training: VQGANTrainingConfig, mesh: Mesh, first: int, stop: int
) -> Iterator[tuple[UInt8[Array, "B R R C"], bool]]:
    """Batches `first` to `stop` - 1 on the mesh, and whether the discriminator takes part in their steps."""
    local_rows = process_local_rows(training.batch_size, mesh)
    for index in range(first, stop):
        is_adversarial = training.discriminator_weight > 0 and index >= training.discriminator_start
        yield on_mesh(batch_at(images, training, index, local_rows), mesh), is_adversarial


def batch_at(
    images: UInt8[np.ndarray, "n R R C"], training: VQGANTrainingConfig, index: int, rows: list[int] | None = None
) -> UInt8[np.ndarray, "b R R C"]:
    """Rows of a batch (all by default): random images, each flipped or not, from the seed and the index alone."""
    random = np.random.Generator(np.random.Philox(key=[training.seed, index]))
    # Sorted, which is kinder to a memory-mapped file; the losses do not care.
    chosen = np.sort(random.integers(0, len(images), training.batch_size))
    flipped = random.random(training.batch_size) < 0.5
    if rows is not None:
        chosen, flipped = chosen[rows], flipped[rows]
    batch = images[chosen]
    return np.where(flipped[:, None, None, None], batch[:, :, ::-1], batch) if training.flip else batch


def _describe(values: Mapping[str, float]) -> str:
    return (
        f"loss {values['loss']:.3f}, PSNR {values['psnr']:.1f} dB, {values['codes_used']:.0f} codes "
        f"(perplexity {values['perplexity']:.0f}), {values['images_per_second']:.0f} images/s"
    )
