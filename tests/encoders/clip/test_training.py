"""The loss against plain NumPy, the same numbers on any mesh, and a continuation that changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data.corpus.training_samples import PairSample
from cm3leon_jax.encoders.clip import training as clip_training
from cm3leon_jax.encoders.clip.config import ClipTrainingConfig
from cm3leon_jax.encoders.clip.model import abstract_clip
from cm3leon_jax.encoders.clip.training import ClipTrainStep, batch_indices, contrastive_loss
from cm3leon_jax.encoders.training import LOG_NAME
from cm3leon_jax.errors import UserError
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.models.weight_decay import decays
from cm3leon_jax.training import trainer
from cm3leon_jax.training.schedules import learning_rate
from tests.conftest import CAPTIONS

TRAINING = ClipTrainingConfig(
    num_steps=8, batch_size=16, peak_learning_rate=1e-3, warmup_steps=2, log_every=2, save_every=3
)
PAIRS = PairSample(
    [f"{CAPTIONS[index % 4]} {index}" for index in range(40)],
    np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8),
)


def one_device():
    return make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])


def train(encoder, folder: Path, training: ClipTrainingConfig = TRAINING) -> dict[str, np.ndarray] | None:
    """The parameters after the last step; None if a signal stopped it."""
    mesh, checkpoints = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2)), folder / "checkpoints"
    result = trainer.train(
        clip_training.training_run(
            encoder.architecture, training, encoder.tokenizer, PAIRS, mesh, checkpoints, folder, {}
        )
    )
    return None if result.is_stopped else clip_training.whole_parameters(result.state)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / f"{LOG_NAME}_metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "temperature", "learning_rate", "grad_norm")
    return [{name: line[name] for name in names} for line in lines]


def test_the_loss_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    texts, images = rng.standard_normal((2, 6, 5))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    total = 0.0
    for i in range(6):
        to_images = np.array([7.0 * texts[i] @ images[j] for j in range(6)])
        to_texts = np.array([7.0 * texts[j] @ images[i] for j in range(6)])
        for scores in (to_images, to_texts):
            total -= scores[i] - np.log(np.exp(scores).sum())
    found = contrastive_loss(jnp.asarray(texts), jnp.asarray(images), jnp.asarray(7.0))
    assert float(found) == pytest.approx(total / 12, rel=1e-5)


@pytest.mark.slow
def test_eight_devices_give_loss_and_gradients_of_one(clip_encoder):
    indices = batch_indices(40, TRAINING, 0)
    tokens, _ = clip_encoder.tokenizer([PAIRS.texts[index] for index in indices])
    found = []
    for mesh in (one_device(), make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))):
        compiled = ClipTrainStep(clip_encoder.architecture, TRAINING, clip_encoder.special_tokens.read_at, mesh)
        parameters = compiled.init().parameters
        found.append(jax.device_get(compiled.gradients(parameters, tokens, PAIRS.images[indices])))
    (one, of_one), (eight, of_eight) = found
    assert float(eight) == pytest.approx(float(one), rel=1e-5) and float(one) > 0.5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), of_eight, of_one)


@settings(max_examples=30)
@given(count=st.integers(1, 30), size=st.integers(2, 9), seed=st.integers(0, 9), epoch=st.integers(0, 5))
def test_a_pass_holds_every_pair_once(count, size, seed, epoch):
    training = dataclasses.replace(TRAINING, batch_size=size, seed=seed)
    seen = [batch_indices(count * size, training, epoch * count + step) for step in range(count)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(count * size))


def test_a_batch_follows_from_seed_and_step():
    first = batch_indices(40, TRAINING, 1)
    np.testing.assert_array_equal(first, batch_indices(40, TRAINING, 1))
    assert len(set(first.tolist())) == 16
    assert not np.array_equal(first, batch_indices(40, TRAINING, 0))
    assert not np.array_equal(first, batch_indices(40, dataclasses.replace(TRAINING, seed=1), 1))


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    training = dataclasses.replace(TRAINING, num_steps=12, warmup_steps=4)
    rates = [float(learning_rate(training, 12, "cosine")(step)) for step in range(13)]
    assert rates[0] == 0 and rates[4] == pytest.approx(1e-3) and rates[12] == pytest.approx(0, abs=1e-9)
    assert rates[8] == pytest.approx(5e-4)
    assert rates[:5] == sorted(rates[:5]) and rates[4:] == sorted(rates[4:], reverse=True)


def test_decay_spares_norms_biases_and_the_temperature(clip_encoder):
    mask = decays(nnx.state(abstract_clip(clip_encoder.architecture)))
    found = {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(mask)}
    spared = {name for name, is_decayed in found.items() if not is_decayed}
    expected = {name for name in found if name.endswith("bias") or ".scale" in name or name == "logit_scale"}
    assert spared == expected and 0 < len(spared) < len(found)


@pytest.mark.slow
def test_the_temperature_stays_above_its_lowest(clip_encoder):
    training = dataclasses.replace(TRAINING, lowest_temperature=0.05)
    compiled = ClipTrainStep(clip_encoder.architecture, training, clip_encoder.special_tokens.read_at, one_device())
    state = compiled.init()
    scale = state.parameters["logit_scale"]
    state.parameters["logit_scale"] = scale.replace(jnp.asarray(-np.log(0.04), jnp.float32))
    tokens, _ = clip_encoder.tokenizer(PAIRS.texts[:16])
    state, found = compiled.step(state, tokens, PAIRS.images[:16])
    assert float(found["temperature"]) == pytest.approx(0.05, rel=1e-5)
    assert float(state.parameters["logit_scale"].get_value()) == pytest.approx(-np.log(0.05), rel=1e-5)


@pytest.mark.slow
def test_training_resumes_bit_for_bit(clip_encoder, tmp_path, monkeypatch):
    whole = train(clip_encoder, tmp_path / "whole")
    assert [line["step"] for line in metrics(tmp_path / "whole")] == [1, 2, 4, 6, 8]

    seen: list[int] = []

    def interrupted(num_pairs, training, step):
        seen.append(step)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return batch_indices(num_pairs, training, step)

    monkeypatch.setattr(clip_training, "batch_indices", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(clip_encoder, tmp_path / "parts")
    monkeypatch.setattr(clip_training, "batch_indices", lambda *given: seen.append(given[2]) or batch_indices(*given))
    seen.clear()
    parts = train(clip_encoder, tmp_path / "parts")
    assert seen == [3, 4, 5, 6, 7]
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")

    fewer = dataclasses.replace(TRAINING, num_steps=4)
    with pytest.raises(UserError, match=r"num_steps 4 ends the run at step 4, but it is at step 8"):
        train(clip_encoder, tmp_path / "parts", fewer)


def test_a_loss_that_is_no_number_stops_the_run_unsaved(clip_encoder, tmp_path, monkeypatch):
    def broken(*given: Any) -> ClipTrainStep:
        step = ClipTrainStep(*given)
        step.step = lambda state, *batch: (state, {"loss": jnp.array(jnp.nan), "grad_norm": jnp.array(1.0)})
        return step

    monkeypatch.setattr(clip_training, "compiled_step", broken)
    with pytest.raises(UserError, match=r"loss is nan since step 1: lower config.encoder.training.peak"):
        train(clip_encoder, tmp_path)
    assert not [found for found in (tmp_path / "checkpoints").iterdir() if found.name.isdigit()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_run_is_bit_for_bit_that_of_one(clip_encoder, tmp_path, monkeypatch, number):
    values = dataclasses.replace(TRAINING, num_steps=5, save_every=100)
    whole = train(clip_encoder, tmp_path / "whole", values)

    def signalled(num_pairs, training, step):
        if step == 2:
            os.kill(os.getpid(), number)
        return batch_indices(num_pairs, training, step)

    with monkeypatch.context() as patch:
        patch.setattr(clip_training, "batch_indices", signalled)
        assert train(clip_encoder, tmp_path / "parts", values) is None
    assert [found.name for found in (tmp_path / "parts" / "checkpoints").iterdir()] == ["3"]
    parts = train(clip_encoder, tmp_path / "parts", values)
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)
