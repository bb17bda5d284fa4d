"""The update rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cm3leon_jax.checkpoints import flat
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.transformer import Transformer
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


def muon_updates(weight_decay: float = 0.0, **changes: object) -> tuple[dict, dict, dict]:
    """Parameters, the first gradient, and the second of two updates along it, at a rate of 0.1; by name."""
    model = Transformer(ModelConfig(num_layers=2, model_dim=32, num_heads=4, **changes), 128, 16, nnx.Rngs(0))
    parameters, rng = nnx.state(model), np.random.default_rng(0)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), parameters)
    config = OptimizerConfig(
        algorithm="muon", peak_learning_rate=0.1, warmup_steps=1, weight_decay=weight_decay, clip_norm=0.0
    )
    rule = optimizer(config, num_steps=1000)
    _, state = rule.update(gradient, rule.init(parameters), parameters)
    updates, _ = rule.update(gradient, state, parameters)
    return tuple(flat(nnx.to_pure_dict(tree)) for tree in (parameters, gradient, updates))


@pytest.mark.parametrize("changes", [{}, {"gated": True, "num_key_value_heads": 2}], ids=["plain", "gated, grouped"])
def test_muon_makes_matrices_orthogonal_of_the_size_of_adamw_updates(changes):
    _, gradient, updates = muon_updates(**changes)
    inputs = {"output": 2}
    matrices = [name for name in updates if name.startswith("blocks.") and updates[name].ndim > 2]
    assert len(matrices) == 6 + ("gated" in changes)
    for name in matrices:
        axes = inputs.get(name.rpartition(".")[2], 1)
        for found, given in zip(updates[name], gradient[name], strict=True):
            rows = int(np.prod(found.shape[:axes]))
            left, singular, right = np.linalg.svd(np.asarray(given).reshape(rows, -1), full_matrices=False)
            along = left.T @ np.asarray(found).reshape(rows, -1) @ right.T
            scale = -0.1 * 0.2 * max(rows, found.size // rows) ** 0.5
            # Five iterations of Newton and Schulz bring singular values near 1, where they were not near 0.
            kept = singular > 0.05 * singular.max()
            diagonal = np.diag(along) / scale
            assert ((diagonal > 0.6) & (diagonal < 1.25))[kept].all(), name
            np.testing.assert_allclose(along / scale, np.diag(diagonal), atol=0.02, err_msg=name)
    # The others take AdamW's steps.
    for name in updates.keys() - set(matrices):
        np.testing.assert_allclose(updates[name], -0.1 * np.sign(gradient[name]), rtol=0.05, err_msg=name)


def test_muon_pulls_weights_toward_zero_as_adamw_does():
    (parameters, _, free), (_, _, decayed) = muon_updates(), muon_updates(weight_decay=0.5)
    for name, value in parameters.items():
        pull = -0.1 * 0.5 * np.asarray(value)
        np.testing.assert_allclose(np.asarray(decayed[name]) - free[name], pull, atol=1e-6, err_msg=name)
