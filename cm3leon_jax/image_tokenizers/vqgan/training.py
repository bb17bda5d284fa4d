"""Trains a VQGAN from the last checkpoint, or the seed, to the last step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import UInt8

from cm3leon_jax.checkpoints import Checkpoints, abstract_on
from cm3leon_jax.errors import RestartError, UserError
from cm3leon_jax.image_tokenizers.training import METRICS_FILE, require_same
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig, VQGANTrainingConfig
from cm3leon_jax.image_tokenizers.vqgan.lpips import SMALLEST_SIDE, load_lpips
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.image_tokenizers.vqgan.train_step import Recipe, VQGANState, initial_state, make_train_step
from cm3leon_jax.preemption import PreemptionHandler
from cm3leon_jax.progress import TrainingLog

KEPT_CHECKPOINTS = 2


class VQGANTrainer:
    """Trains a VQGAN on images, on all devices of the host."""

    def __init__(self, config: VQGANConfig) -> None:
        """Checks what can be checked before images are read."""
        training, self._config, self._devices = config.training, config, jax.local_devices()
        if training.batch_size % len(self._devices):
            raise UserError(
                f"config.image_tokenizer.training.batch_size is {training.batch_size}: "
                f"it must be a multiple of the {len(self._devices)} devices of this host"
            )
        if training.perceptual_weight > 0 and config.resolution < SMALLEST_SIDE:
            raise UserError(
                f"config.image_tokenizer.resolution is {config.resolution}: LPIPS halves the side four times and needs "
                f"{SMALLEST_SIDE}; set config.image_tokenizer.training.perceptual_weight to 0"
            )

    def train(self, images: UInt8[np.ndarray, "n R R C"], workdir: Path, record: dict[str, Any]) -> VQGANTokenizer:
        """The tokenizer after the last step."""
        config, training = self._config, self._config.training
        weights = load_lpips(training.perceptual_weights_file) if training.perceptual_weight > 0 else None
        devices = self._devices
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        checkpoints = Path(config.path) / "checkpoints"
        state = train(Recipe(config, training), images, weights, mesh, checkpoints, workdir / METRICS_FILE, record)
        return VQGANTokenizer(config, state.parameters)


def train(
    recipe: Recipe,
    images: UInt8[np.ndarray, "n R R C"],
    lpips_weights: dict[str, np.ndarray] | None,
    mesh: Mesh,
    checkpoints: Path,
    metrics_file: Path,
    record: dict[str, Any],
) -> VQGANState:
    """From the last checkpoint, or the seed, to the last step; batch t follows from the seed and t alone.

    Raises:
      UserError: if the checkpoints are of another config, or the loss or the parameters are no longer finite.
      RestartError: if it was told to stop, and has saved.
    """
    training = recipe.training
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    weights = None if lpips_weights is None else jax.device_put(lpips_weights, replicated)
    step_function = make_train_step(recipe, mesh)
    with Checkpoints(checkpoints, keep=KEPT_CHECKPOINTS) as kept, PreemptionHandler() as stop:
        state = jax.device_put(initial_state(recipe, jnp.asarray(batch_at(images, training, 0))), replicated)
        if kept.latest_step is not None:
            require_same(kept.meta(kept.latest_step), record, checkpoints)
            everywhere = jax.tree.map(lambda _: replicated, state)
            state = kept.restore(kept.latest_step, abstract_on(state, everywhere))
        first = int(state.step)
        if first > training.num_steps:
            raise UserError(
                f"{checkpoints} is at step {first:,}, beyond config.image_tokenizer.training.num_steps "
                f"{training.num_steps:,}: raise it, or delete the folder"
            )
        log = TrainingLog(
            "image tokenizer",
            metrics_file,
            first,
            training.num_steps,
            training.log_every,
            (training.batch_size, "images"),
            "lower config.image_tokenizer.training.peak_learning_rate, or lengthen warmup_steps, and run it again with "
            "another config.image_tokenizer.path",
            lambda values: (
                f"loss {values['loss']:.3f}, PSNR {values['psnr']:.1f} dB, {values['codes_used']:.0f} codes "
                f"(perplexity {values['perplexity']:.0f})"
            ),
        )
        try:
            for step in range(first, training.num_steps):
                batch = jax.device_put(batch_at(images, training, step), split)
                adversarial = recipe.has_discriminator and step >= training.discriminator_start
                state, metrics = step_function(state, batch, weights, adversarial)
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
    return state


def batch_at(
    images: UInt8[np.ndarray, "n R R C"], training: VQGANTrainingConfig, step: int
) -> UInt8[np.ndarray, "B R R C"]:
    """The batch of a step: random images, each flipped or not, from the seed and the step alone."""
    random = np.random.Generator(np.random.Philox(key=[training.seed, step]))
    # Sorted, which is kinder to a memory-mapped file; the losses do not care.
    batch = images[np.sort(random.integers(0, len(images), training.batch_size))]
    if training.flip:
        flipped = random.random(training.batch_size) < 0.5
        batch = np.where(flipped[:, None, None, None], batch[:, :, ::-1], batch)
    return batch
