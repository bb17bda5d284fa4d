"""The update rule."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm3leon_jax.training.config import OptimizerConfig
from cm3leon_jax.training.optimizer import optimizer


def test_the_first_update_by_hand():
    config = OptimizerConfig(peak_learning_rate=0.1, warmup_steps=1, weight_decay=0.5, clip_norm=1.0)
    rule = optimizer(config, num_steps=100)
    parameters, gradient = {"w": jnp.array([3.0, -4.0])}, {"w": jnp.array([30.0, -40.0])}
    state = rule.init(parameters)
    updates, state = rule.update(gradient, state, parameters)
    np.testing.assert_array_equal(updates["w"], 0.0)
    updates, _ = rule.update(gradient, state, parameters)
    # The gradient is clipped to (0.6, -0.8); Adam's step is its sign; decay pulls each weight by half of it.
    expected = -0.1 * (np.sign([0.6, -0.8]) + 0.5 * np.array([3.0, -4.0]))
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)
    assert optax.global_norm(gradient) == 50.0


def test_weight_decay_spares_biases_and_norms():
    rule = optimizer(OptimizerConfig(peak_learning_rate=0.1, warmup_steps=1), num_steps=100)
    parameters = {"blocks": {"up": jnp.ones(3), "up_bias": jnp.ones(3)}, "final_norm": {"scale": jnp.ones(3)}}
    state = rule.init(parameters)
    nothing = {"blocks": {"up": jnp.zeros(3), "up_bias": jnp.zeros(3)}, "final_norm": {"scale": jnp.zeros(3)}}
    _, state = rule.update(nothing, state, parameters)
    updates, _ = rule.update(nothing, state, parameters)
    assert (updates["blocks"]["up"] < 0).all()
    assert not updates["blocks"]["up_bias"].any() and not updates["final_norm"]["scale"].any()


def test_a_clip_norm_of_zero_leaves_gradients_as_they_are():
    def state_after(clip_norm: float) -> optax.OptState:
        rule = optimizer(OptimizerConfig(clip_norm=clip_norm), num_steps=100)
        parameters = {"w": jnp.ones(2)}
        return rule.update({"w": jnp.array([30.0, -40.0])}, rule.init(parameters), parameters)[1]

    def moments(state: optax.OptState) -> list[float]:
        return [
            float(optax.global_norm(moment)) for moment in optax.tree_utils.tree_get_all_with_path(state, "mu")[0][1:]
        ]

    assert moments(state_after(0.0)) == moments(state_after(1e30))
    assert moments(state_after(0.0))[0] == pytest.approx(50 * moments(state_after(1.0))[0])
