"""Which steps are left out, and that one that is changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.training.config import RecoveryConfig
from cm3leon_jax.training.skipping import MEMORY, History
from cm3leon_jax.training.step import TrainStep, on_mesh


def after(norms, recovery, loss=1.0, history=None):
    """The history after steps with these gradient norms, and which of them were taken."""
    history, taken = history or History.empty(), []
    for norm in norms:
        sound = history.should_apply(jnp.float32(loss), jnp.float32(norm), recovery)
        history = history.after(jnp.float32(norm), sound)
        taken.append(bool(sound))
    return history, taken


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10.0), max_size=20))
def test_the_mean_is_that_of_all_steps_taken_and_all_finite_ones_are_at_first(norms):
    history, taken = after(norms, RecoveryConfig())
    assert all(taken)
    assert int(history.num_taken) == len(norms)
    assert float(history.mean_norm) == pytest.approx(np.mean(norms) if norms else 0.0, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left_out_from_the_first_step_on(bad):
    history, taken = after([1.0, bad, bad, 2.0, bad], RecoveryConfig(spike_factor=0.0))
    assert taken == [True, False, False, True, False]
    assert (int(history.num_skipped), int(history.in_a_row), int(history.num_taken)) == (3, 1, 2)
    assert float(history.mean_norm) == pytest.approx(1.5)
    assert after([1.0], RecoveryConfig(), loss=bad)[1] == [False]


def test_a_leap_is_left_out_once_there_is_a_mean_and_does_not_move_it():
    history = History(jnp.float32(2.0), jnp.int32(MEMORY), jnp.int32(0), jnp.int32(0))
    left, taken = after([19.9, 1e6, 21.9], RecoveryConfig(spike_factor=10.0), history=history)
    # The first of them raised the mean to 2.18.
    assert taken == [True, False, False]
    assert float(left.mean_norm) == pytest.approx(2.0 + 17.9 / MEMORY)
    early = history._replace(num_taken=jnp.int32(MEMORY - 1))
    assert after([1e6], RecoveryConfig(spike_factor=10.0), history=early)[1] == [True]
    assert after([1e6], RecoveryConfig(spike_factor=0.0), history=history)[1] == [True]


def test_a_step_that_is_left_out_changes_no_parameter_and_no_moment(config: Config, corpus, vocabulary):
    mesh = make_mesh(MeshConfig(fsdp=8))
    compiled = TrainStep(config, vocabulary, mesh)
    source = BatchSource(corpus, vocabulary, config.objective, config.batch)
    state, metrics = compiled.step(compiled.init(), on_mesh(source[0], mesh))
    rate = float(metrics["learning_rate"])
    before = jax.device_get(state)
    # So small a mean makes a leap of any step.
    state["history"] = jax.device_put(
        History(jnp.float32(1e-9), jnp.int32(MEMORY), jnp.int32(0), jnp.int32(0)),
        jax.tree.map(lambda leaf: leaf.sharding, compiled.abstract_state["history"]),
    )
    state, metrics = compiled.step(state, on_mesh(source[1], mesh))
    assert (int(metrics["skipped_steps"]), int(metrics["skipped_in_a_row"])) == (1, 1)
    for part in ("parameters", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, before[part], jax.device_get(state[part]))
    assert int(state["step"]) == 2
    assert np.isfinite(rate)
