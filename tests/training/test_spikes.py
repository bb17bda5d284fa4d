"""Which steps are skipped, and that a skipped step changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh, on_mesh
from cm3leon_jax.training.config import RecoveryConfig
from cm3leon_jax.training.spikes import WINDOW, SpikeState
from cm3leon_jax.training.step import TrainStep


def after(norms, recovery, loss=1.0, spikes=None):
    """The spike state after steps with these gradient norms, and which of them were applied."""
    spikes, applied = spikes or SpikeState.initial(), []
    for norm in norms:
        apply = spikes.should_apply(jnp.float32(loss), jnp.float32(norm), recovery)
        spikes = spikes.update(jnp.float32(norm), apply)
        applied.append(bool(apply))
    return spikes, applied


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10.0), max_size=20))
def test_mean_norm_is_over_applied_steps_and_all_finite_ones_are_applied_at_first(norms):
    spikes, applied = after(norms, RecoveryConfig())
    assert all(applied)
    assert int(spikes.num_applied) == len(norms)
    assert float(spikes.mean_norm) == pytest.approx(np.mean(norms) if norms else 0.0, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_steps_are_skipped_from_the_first_step_on(bad):
    spikes, applied = after([1.0, bad, bad, 2.0, bad], RecoveryConfig(spike_factor=0.0))
    assert applied == [True, False, False, True, False]
    assert (int(spikes.num_skipped), int(spikes.skipped_in_a_row), int(spikes.num_applied)) == (3, 1, 2)
    assert float(spikes.mean_norm) == pytest.approx(1.5)
    assert after([1.0], RecoveryConfig(), loss=bad)[1] == [False]


def test_a_spike_is_skipped_once_there_is_a_mean_and_does_not_move_it():
    spikes = SpikeState(jnp.float32(2.0), jnp.int32(WINDOW), jnp.int32(0), jnp.int32(0))
    left, applied = after([19.9, 1e6, 21.9], RecoveryConfig(spike_factor=10.0), spikes=spikes)
    # The first of them raised the mean to 2.18.
    assert applied == [True, False, False]
    assert float(left.mean_norm) == pytest.approx(2.0 + 17.9 / WINDOW)
    early = spikes._replace(num_applied=jnp.int32(WINDOW - 1))
    assert after([1e6], RecoveryConfig(spike_factor=10.0), spikes=early)[1] == [True]
    assert after([1e6], RecoveryConfig(spike_factor=0.0), spikes=spikes)[1] == [True]


def test_a_skipped_step_changes_no_parameter_and_no_moment(config: Config, corpus, vocabulary):
    mesh = make_mesh(MeshConfig(fsdp=8))
    compiled = TrainStep(config, vocabulary, mesh)
    source = BatchSource(corpus, vocabulary, config.objective, config.batch)
    state, metrics = compiled.step(compiled.init(), on_mesh(source[0], mesh))
    rate = float(metrics["learning_rate"])
    before = jax.device_get(state)
    # So small a mean makes any step a spike.
    state["spikes"] = jax.device_put(
        SpikeState(jnp.float32(1e-9), jnp.int32(WINDOW), jnp.int32(0), jnp.int32(0)),
        jax.tree.map(lambda leaf: leaf.sharding, compiled.abstract_state["spikes"]),
    )
    state, metrics = compiled.step(state, on_mesh(source[1], mesh))
    assert (int(metrics["skipped_steps"]), int(metrics["skipped_in_a_row"])) == (1, 1)
    for part in ("parameters", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, before[part], jax.device_get(state[part]))
    assert int(state["step"]) == 2
    assert np.isfinite(rate)
