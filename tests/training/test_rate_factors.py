"""Frozen parameters keep every bit and have no state; others go by their own rates, also after a resume."""

import dataclasses

import jax
import numpy as np
import pytest

from cm3leon_jax.checkpoints import Checkpoints, flat
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.errors import UserError
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh, on_mesh
from cm3leon_jax.training.config import OptimizerConfig
from cm3leon_jax.training.step import TrainStep

MESHES = [MeshConfig(fsdp=1), MeshConfig(replica=2, fsdp=2, tensor=2)]


def with_factors(config, *factors, **changes):
    optimizer = dataclasses.replace(config.optimizer, learning_rate_factors=factors, **changes)
    return dataclasses.replace(config, optimizer=optimizer)


def compiled_on(config, vocabulary, mesh):
    return TrainStep(config, vocabulary, make_mesh(mesh, jax.devices()[:1] if mesh.replica is None else None))


def steps(compiled, config, corpus, vocabulary, state, first, stop):
    source = BatchSource(corpus, vocabulary, config.objective, config.batch)
    for index in range(first, stop):
        state, metrics = compiled.step(state, on_mesh(source[index], compiled._mesh))
    return state, jax.device_get(metrics)


def by_name(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    }


@pytest.mark.parametrize("mesh", MESHES, ids=["one device", "eight"])
@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_frozen_parameters_keep_their_bits_and_have_no_state(config, corpus, vocabulary, mesh, num_microbatches):
    config = with_factors(config, "blocks.attention.*=0", "token_embedding.text=0", "position_embedding=0")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, tied_embeddings=False),
        train=dataclasses.replace(config.train, num_microbatches=num_microbatches),
    )
    compiled = compiled_on(config, vocabulary, mesh)
    state = compiled.init()
    before = by_name(state["parameters"])
    state, _ = steps(compiled, config, corpus, vocabulary, state, 0, 4)
    after, is_text = by_name(state["parameters"]), vocabulary.is_text(np.arange(vocabulary.size))
    for name, value in after.items():
        is_frozen = name.startswith("blocks.attention.") or name == "position_embedding"
        assert np.array_equal(value.view(np.int32), before[name].view(np.int32)) == is_frozen, name
    table, old = after["token_embedding"], before["token_embedding"]
    np.testing.assert_array_equal(table[is_text].view(np.int32), old[is_text].view(np.int32))
    assert (table[~is_text] != old[~is_text]).any(axis=1).sum() > 30
    moments = [name for name in by_name(state["optimizer"]) if ".mu." in name]
    assert moments and not [name for name in moments if "blocks.attention." in name or "position_embedding" in name]
    assert len(moments) == len(after) - sum(name.startswith("blocks.attention.") for name in after) - 1


def test_rates_are_multiples_of_the_base_rate(config, corpus, vocabulary):
    """Adam's first steps are as long as the rate, whatever the gradient: rates show in how far parameters moved."""
    config = with_factors(
        config,
        *("blocks.feed_forward.*=0.25", "token_embedding.image=4", "token_embedding=0.5"),
        weight_decay=0.0,
        warmup_steps=1,
        epsilon=1e-12,
    )
    compiled = compiled_on(config, vocabulary, MESHES[0])
    state = compiled.init()
    before = by_name(state["parameters"])
    # The first step's rate is 0.
    state, _ = steps(compiled, config, corpus, vocabulary, state, 0, 2)
    moved = {name: np.abs(value - before[name]) for name, value in by_name(state["parameters"]).items()}
    rate, ids = config.optimizer.peak_learning_rate, np.arange(vocabulary.size)
    for found, factor in (
        (moved["blocks.feed_forward.down"], 0.25),
        (moved["blocks.attention.output"], 1.0),
        (moved["token_embedding"][vocabulary.is_image(ids)], 4.0),
        (moved["token_embedding"][vocabulary.is_text(ids)], 0.5),
        (moved["token_embedding"][[vocabulary.end, vocabulary.break_]], 0.5),
    ):
        assert found.max() <= 1.5 * rate * factor and np.median(found[found > 0]) > 0.3 * rate * factor


@pytest.mark.parametrize(
    ("algorithm", "factors"),
    [
        ("adamw", ("blocks.*=0", "token_embedding.special=0", "position_embedding=3")),
        ("muon", ("blocks.attention.*=0", "blocks.*=2", "token_embedding.special=0")),
        ("muon", ()),
    ],
)
def test_a_run_goes_on_from_its_checkpoint_as_if_it_had_never_stopped(
    config, corpus, vocabulary, tmp_path, algorithm, factors
):
    config = with_factors(config, *factors, algorithm=algorithm)
    compiled = compiled_on(config, vocabulary, MESHES[1])
    whole, _ = steps(compiled, config, corpus, vocabulary, compiled.init(), 0, 4)
    half, _ = steps(compiled, config, corpus, vocabulary, compiled.init(), 0, 2)
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(2, half, {})
        checkpoints.wait()
        half = checkpoints.restore(2, compiled.abstract_state)
    resumed, _ = steps(compiled, config, corpus, vocabulary, half, 2, 4)
    whole, resumed = by_name(whole), by_name(resumed)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_factors_of_one_give_the_numbers_of_none(config, corpus, vocabulary):
    found = []
    for given in (config, with_factors(config, "*=1")):
        compiled = compiled_on(given, vocabulary, MESHES[0])
        state, metrics = steps(compiled, given, corpus, vocabulary, compiled.init(), 0, 3)
        found.append(by_name(state["parameters"]) | flat(metrics))
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)


@pytest.mark.parametrize("text", ["blocks.*", "=1", "blocks=x", "blocks.*=-1", "blocks.*=nan", "blocks.*=inf"])
def test_what_is_no_pattern_with_a_factor_is_refused(text):
    with pytest.raises(UserError, match=r"config.optimizer.learning_rate_factors has .*: write PATTERN=FACTOR"):
        OptimizerConfig(learning_rate_factors=(text,))


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (("block.*=0",), r"block\.\* matches no parameter.*they are blocks.attention.key, "),
        (("blocks.*=0.5", "blocks.attention.query=1"), "blocks.attention.query matches no parameter, or none that"),
        (("output_embedding.image=1",), "output_embedding.image matches no parameter"),
        (("*=0",), "all parameters are frozen"),
    ],
)
def test_patterns_that_do_nothing_are_refused(config, vocabulary, factors, message):
    with pytest.raises(UserError, match=message) as refused:
        compiled_on(with_factors(config, *factors), vocabulary, MESHES[0])
    assert "\n" not in str(refused.value)
