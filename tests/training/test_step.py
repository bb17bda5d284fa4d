"""The training step: the first loss, the same numbers on any mesh, and packing that changes nothing."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.data.batches.config import BatchConfig, ObjectiveConfig
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh, on_mesh
from cm3leon_jax.training.config import OptimizerConfig, TrainConfig
from cm3leon_jax.training.eval_loss import make_eval_step
from cm3leon_jax.training.step import TrainStep, loss_chunks, objective_loss
from tests.training.conftest import B, L


def one_device():
    return make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])


def source_of(config, corpus, vocabulary):
    return BatchSource(corpus, vocabulary, config.objective, config.batch)


def train(config, corpus, vocabulary, mesh, num_steps=4):
    compiled = TrainStep(config, vocabulary, mesh)
    source, state, losses = source_of(config, corpus, vocabulary), compiled.init(), []
    for step in range(num_steps):
        state, metrics = compiled.step(state, on_mesh(source[step], mesh))
        losses.append(jax.device_get(metrics))
    return losses, jax.device_get(state["parameters"])


def test_the_first_loss_is_that_of_a_uniform_guess(config, corpus, vocabulary):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, init_std=0.006))
    losses, _ = train(config, corpus, vocabulary, one_device(), num_steps=1)
    assert losses[0]["loss"] == pytest.approx(math.log(vocabulary.size), rel=0.01)


def same_numbers(found, expected):
    (losses, parameters), (other_losses, other_parameters) = found, expected
    for one, other in zip(losses, other_losses, strict=True):
        for name in one:
            assert other[name] == pytest.approx(one[name], rel=2e-4), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), parameters, other_parameters)


def test_eight_devices_with_microbatches_give_the_numbers_of_one(config, corpus, vocabulary):
    expected = train(config, corpus, vocabulary, one_device())
    split = dataclasses.replace(config, train=dataclasses.replace(config.train, num_microbatches=2))
    same_numbers(train(split, corpus, vocabulary, make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))), expected)


def test_eight_devices_give_the_numbers_of_one_with_muon(config, corpus, vocabulary):
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, algorithm="muon"))
    expected = train(config, corpus, vocabulary, one_device())
    same_numbers(train(config, corpus, vocabulary, make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))), expected)


@pytest.fixture(scope="module")
def twenty_steps():
    """What 20 steps of 32 rows give on one device, made once."""
    found = []

    def steps(config, corpus, vocabulary):
        if not found:
            found.append(train(config, corpus, vocabulary, one_device(), num_steps=20))
        return found[0]

    return steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "microbatches", "remat"),
    [
        (MeshConfig(replica=8, fsdp=1), 1, "none"),
        (MeshConfig(fsdp=8), 1, "none"),
        (MeshConfig(fsdp=8), 4, "full"),
        (MeshConfig(fsdp=4, tensor=2), 1, "save_attention"),
        (MeshConfig(replica=2, fsdp=2, tensor=2), 1, "none"),
        (MeshConfig(replica=2, fsdp=2, tensor=2), 4, "save_dots"),
        (None, 4, "none"),
        (None, 1, "full"),
        (None, 1, "save_attention"),
        (None, 1, "save_dots"),
    ],
)
def test_neither_mesh_nor_microbatches_nor_remat_change_a_run(
    config, corpus, vocabulary, twenty_steps, mesh, microbatches, remat
):
    config = dataclasses.replace(
        config,
        batch=BatchConfig(batch_size=32, sequence_length=L),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=2),
        train=TrainConfig(num_tokens=20.0 * 32 * L),
    )
    expected = twenty_steps(config, corpus, vocabulary)
    other = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, remat=remat),
        train=dataclasses.replace(config.train, num_microbatches=microbatches),
    )
    devices = one_device() if mesh is None else make_mesh(mesh)
    same_numbers(train(other, corpus, vocabulary, devices, num_steps=20), expected)


def test_chunks_of_the_loss_follow_from_the_scores_that_fit():
    with jax.set_mesh(one_device()):
        assert loss_chunks(768, 384) == 1
        # 768 tokens times 64,000 ids, float32, are 197 MB; 32 MiB are taken at a time.
        assert loss_chunks(768, 64_000) == 6
        assert loss_chunks(384, 64_000) == 3
        # Parts are equal: 5 do not divide 768 tokens.
        assert loss_chunks(768, 384, least=5) == 6
        assert loss_chunks(2, 384, least=5) == 2
    with jax.set_mesh(make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))):
        assert loss_chunks(4 * 768, 64_000) == 3


def test_training_lowers_the_loss_of_each_modality(config, corpus, vocabulary):
    config = dataclasses.replace(config, train=TrainConfig(num_tokens=40.0 * B * L))
    losses, _ = train(config, corpus, vocabulary, one_device(), num_steps=40)
    assert losses[-1]["loss_text"] < 0.6 * losses[0]["loss_text"]
    assert losses[-1]["loss_image"] < losses[0]["loss_image"]


def unpacked(batch: Batch, pad: int) -> Batch:
    """The same documents, each in a row of its own."""
    rows = []
    for row in range(B):
        valid = batch.weights[row] > 0
        for start in np.unique(batch.document_start[row][valid]):
            inside = np.flatnonzero(valid & (batch.document_start[row] == start))
            tokens, targets = np.full(L, pad, np.int32), np.full(L, pad, np.int32)
            positions, starts = np.zeros(L, np.int32), np.arange(L, dtype=np.int32)
            weights, places = np.zeros(L, np.float32), np.zeros(L, np.int32)
            n = len(inside)
            tokens[:n], targets[:n] = batch.tokens[row][inside], batch.targets[row][inside]
            weights[:n], positions[:n], starts[:n] = 1, np.arange(n), 0
            places[:n] = batch.image_positions[row][inside]
            rows.append((tokens, targets, weights, positions, starts, places))
    return Batch(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))


def test_packing_changes_neither_loss_nor_gradients(config, corpus, vocabulary):
    compiled = TrainStep(config, vocabulary, one_device())
    packed = source_of(config, corpus, vocabulary)[0]
    alone = unpacked(packed, vocabulary.pad)
    assert len(alone.tokens) > 2 * B
    # A few steps first, so that the layers that start at zero take part.
    _, parameters = train(config, corpus, vocabulary, one_device())

    def loss(parameters, batch):
        return objective_loss(compiled.graph, parameters, batch, vocabulary)[0]

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    with jax.set_mesh(one_device()):
        results = [jax.device_get(value_and_grad(parameters, batch)) for batch in (packed, alone)]
    assert float(results[0][0]) == pytest.approx(float(results[1][0]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), results[0][1], results[1][1])


def test_padding_has_no_loss_and_modalities_add_up(config, corpus, vocabulary):
    parameters = TrainStep(config, vocabulary, one_device()).init()["parameters"]
    eval_step = make_eval_step(config.model, vocabulary, L, one_device())
    batch = source_of(config, corpus, vocabulary)[0]
    sums = eval_step(parameters, on_mesh(batch, one_device()))
    is_image = vocabulary.is_image(batch.targets)
    assert sums.num_image == is_image.sum()
    assert sums.num_text == ((batch.targets != vocabulary.pad) & ~is_image).sum()
    padded = jax.tree.map(lambda array: np.concatenate([array, array[:4]]), batch)
    padded.weights[B:] = 0
    again = eval_step(parameters, on_mesh(padded, one_device()))
    assert float(again.text + again.image) == pytest.approx(float(sums.text + sums.image), rel=1e-6)


def test_the_objective_can_be_switched_off(config, corpus, vocabulary):
    plain = dataclasses.replace(config, objective=ObjectiveConfig(span_count="none"))
    batch = source_of(plain, corpus, vocabulary)[0]
    assert not (batch.tokens == vocabulary.mask(0)).any()
