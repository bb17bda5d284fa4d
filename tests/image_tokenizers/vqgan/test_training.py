"""Training learns, resumes bit for bit, and stops with a reason."""

import dataclasses
import json
import os
import signal
from argparse import Namespace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.commands import train_image_tokenizer
from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers import training as generic
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.image_tokenizers.vqgan import model as vqgan
from cm3leon_jax.image_tokenizers.vqgan import train_step, training
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig, VQGANTrainingConfig
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.training import trainer

SAMPLE = np.random.default_rng(0).integers(0, 2, (96, 4, 4, 1), np.uint8).repeat(2, 1).repeat(2, 2) * np.uint8(255)
ARCHITECTURE = VQGANConfig(
    resolution=8,
    in_channels=1,
    base_channels=4,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    norm_groups=2,
    latent_channels=4,
    embedding_dim=4,
    codebook_size=16,
)
TRAINING = VQGANTrainingConfig(
    num_steps=40,
    batch_size=16,
    peak_learning_rate=5e-3,
    beta1=0.9,
    codebook_update="ema",
    ema_decay=0.9,
    dead_code_every=5,
    dead_code_threshold=0.5,
    discriminator_weight=0.0,
    log_every=10,
    save_every=10,
)


def train(folder: Path, values: VQGANTrainingConfig) -> trainer.TrainingResult:
    """On one device, whatever the number of all."""
    config = dataclasses.replace(ARCHITECTURE, path=str(folder), training=values)
    return trainer.train(training.VQGANTrainer(config).run(SAMPLE, folder, {}, jax.devices()[:1]))


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{generic.LOG_NAME}_metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_training_learns_and_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", TRAINING).state
    logged = metrics(tmp_path / "whole")
    assert [line["step"] for line in logged] == [1, 10, 20, 30, 40]
    assert logged[-1]["loss"] < 0.8 * logged[0]["loss"]
    assert logged[-1]["psnr"] > logged[0]["psnr"] + 1

    seen: list[int] = []
    batch_at = training.batch_at

    def interrupted(images: np.ndarray, values: VQGANTrainingConfig, index: int, *rows: object) -> np.ndarray:
        seen.append(index)
        if len(seen) == 26:
            raise KeyboardInterrupt
        return batch_at(images, values, index, *rows)

    monkeypatch.setattr(training, "batch_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", TRAINING)
    monkeypatch.setattr(training, "batch_at", batch_at)
    resumed = train(tmp_path / "parts", TRAINING).state
    for expected, found in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(found, expected)
    losses = [[(line["step"], line["loss"]) for line in metrics(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_patch_encoder_learns(tmp_path: Path) -> None:
    config = dataclasses.replace(ARCHITECTURE, encoder="patch", path=str(tmp_path), training=TRAINING)
    trainer.train(training.VQGANTrainer(config).run(SAMPLE, tmp_path, {}, jax.devices()[:1]))
    logged = metrics(tmp_path)
    assert logged[-1]["loss"] < 0.8 * logged[0]["loss"]
    assert logged[-1]["psnr"] > logged[0]["psnr"] + 1


def test_a_batch_follows_from_seed_and_step() -> None:
    first = training.batch_at(SAMPLE, TRAINING, 3)
    np.testing.assert_array_equal(first, training.batch_at(SAMPLE, TRAINING, 3))
    assert not np.array_equal(first, training.batch_at(SAMPLE, TRAINING, 4))
    assert not np.array_equal(first, training.batch_at(SAMPLE, dataclasses.replace(TRAINING, seed=1), 3))
    flipped = training.batch_at(SAMPLE, dataclasses.replace(TRAINING, flip=True), 3)
    same, mirrored = (flipped == first).all((1, 2, 3)), (flipped == first[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all() and not same.all() and not mirrored.all()


def test_the_held_out_images_are_the_last_ones() -> None:
    images, held_out = generic.split_images(np.zeros((2000, 8, 8, 1), np.uint8))
    assert (len(images), len(held_out)) == (1960, 40)
    assert [len(part) for part in generic.split_images(SAMPLE)] == [80, 16]
    with pytest.raises(UserError, match="at least 32"):
        generic.split_images(SAMPLE[:31])


def test_a_loss_that_is_no_number_stops_the_run_unsaved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(state: train_step.VQGANState, *_: object) -> tuple[train_step.VQGANState, dict[str, jax.Array]]:
        return state, {"loss": jnp.array(jnp.nan)}

    monkeypatch.setattr(training, "make_train_step", lambda modules, mesh: broken)
    with pytest.raises(UserError, match=r"loss is nan since step 1: .* another config.image_tokenizer.path"):
        train(tmp_path, TRAINING)
    assert not [found for found in (tmp_path / "checkpoints").iterdir() if found.name.isdigit()]


def test_parameters_that_are_no_numbers_are_not_saved_though_the_loss_was_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(state: train_step.VQGANState, *_: object) -> tuple[train_step.VQGANState, dict[str, jax.Array]]:
        value = jnp.where(state.step == 19, jnp.nan, 1.0)
        metrics = {name: jnp.array(0.5) for name in ("loss", "psnr", "codes_used", "perplexity")}
        parameters = jax.tree.map(lambda leaf: leaf * value, state.parameters)
        return state._replace(step=state.step + 1, parameters=parameters), metrics

    monkeypatch.setattr(training, "make_train_step", lambda modules, mesh: spoilt)
    with pytest.raises(UserError, match=r"image tokenizer's parameters are not finite since step 20 .*: lower config"):
        train(tmp_path, TRAINING)
    assert [found.name for found in (tmp_path / "checkpoints").iterdir()] == ["10"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_run_is_bit_for_bit_that_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    values = dataclasses.replace(TRAINING, num_steps=12, log_every=1, save_every=100)
    batch_at = training.batch_at
    before = signal.getsignal(number)

    def signalled(images: np.ndarray, values: VQGANTrainingConfig, index: int, *rows: object) -> np.ndarray:
        if index == 6:
            os.kill(os.getpid(), number)
        return batch_at(images, values, index, *rows)

    whole = train(tmp_path / "whole", values).state
    with monkeypatch.context() as patch:
        patch.setattr(training, "batch_at", signalled)
        assert train(tmp_path / "parts", values).is_stopped
    assert signal.getsignal(number) is before
    assert [found.name for found in (tmp_path / "parts" / "checkpoints").iterdir()] == ["7"]
    resumed = train(tmp_path / "parts", values).state
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert [line["step"] for line in metrics(tmp_path / "parts")] == list(range(1, 13))


@pytest.mark.slow
def test_the_command_trains_with_a_discriminator_on_all_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generic, "load_image_sample", lambda *_: SAMPLE)
    values = dataclasses.replace(
        TRAINING,
        num_steps=4,
        log_every=1,
        codebook_update="gradient",
        discriminator_weight=0.5,
        discriminator_start=2,
        discriminator_layers=1,
        discriminator_channels=4,
    )
    config = Config(
        image_tokenizer=dataclasses.replace(ARCHITECTURE, path=str(tmp_path / "tokenizer"), training=values)
    )
    assert train_image_tokenizer.run(config, tmp_path, Namespace()) == 0
    lines = [json.loads(line) for line in (tmp_path / f"{generic.LOG_NAME}_metrics.jsonl").read_text().splitlines()]
    assert ["discriminator" in line for line in lines] == [False, False, True, True]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert lines[-1]["adversarial_weight"] > 0
    loaded = load_image_tokenizer(tmp_path / "tokenizer")
    assert "16 held-out images PSNR" in capsys.readouterr().out

    assert train_image_tokenizer.run(config, tmp_path, Namespace()) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert load_image_tokenizer(tmp_path / "tokenizer").fingerprint == loaded.fingerprint
    faster = dataclasses.replace(values, peak_learning_rate=1.0)
    other = dataclasses.replace(config.image_tokenizer, training=faster)
    with pytest.raises(UserError, match=r"values.peak_learning_rate was 0.005 and is 1.0"):
        train_image_tokenizer.run(Config(image_tokenizer=other), tmp_path, Namespace())
    with pytest.raises(UserError, match="multiple of the 8 devices"):
        uneven = dataclasses.replace(values, batch_size=12)
        path = dataclasses.replace(ARCHITECTURE, path=str(tmp_path / "new"), training=uneven)
        train_image_tokenizer.run(Config(image_tokenizer=path), tmp_path, Namespace())


def test_a_tokenizer_from_elsewhere_is_not_overwritten(tmp_path: Path) -> None:
    config = Config(image_tokenizer=dataclasses.replace(ARCHITECTURE, path=str(tmp_path)))
    weights = vqgan.initial_parameters(vqgan.abstract_vqgan(ARCHITECTURE), 0)
    VQGANTokenizer(config.image_tokenizer, weights).save(tmp_path)
    with pytest.raises(UserError, match="not trained by this command"):
        train_image_tokenizer.run(config, tmp_path, Namespace())
