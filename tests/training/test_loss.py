"""The loss at the head: values and gradients against optax, in any number of chunks, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.training.loss import head_loss

B, L, E, V = 8, 6, 16, 40


def inputs():
    hidden, table = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(B, L, E), (V, E)]))
    targets = jax.random.randint(jax.random.key(2), (B, L), 0, V)
    weights = jax.random.uniform(jax.random.key(3), (B, L)).at[:, -1].set(0.0)
    return hidden, table, targets, weights


def by_optax(hidden, table, targets, weights, z_loss):
    scores = jnp.einsum("BLE,VE->BLV", hidden, table)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, targets)
    return (weights * (losses + z_loss * jax.nn.logsumexp(scores, axis=-1) ** 2)).sum(), losses


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("num_chunks", [1, 3])
@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=1), MeshConfig(replica=2, fsdp=2, tensor=2)], ids=["one", "eight"])
def test_against_optax(mesh, num_chunks, z_loss):
    hidden, table, targets, weights = inputs()
    expected = jax.value_and_grad(by_optax, argnums=(0, 1), has_aux=True)(hidden, table, targets, weights, z_loss)

    def loss(hidden, table):
        return head_loss(hidden, table, targets, weights, z_loss, num_chunks)

    with jax.set_mesh(make_mesh(mesh, jax.devices() if mesh.tensor > 1 else jax.devices()[:1])):
        found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, table)
        alone = jax.jit(loss)(hidden, table)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    # Without gradients it takes another way.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), alone, found[0])


def test_scores_of_a_bfloat16_model_are_float32():
    hidden, table, targets, weights = inputs()
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])):
        total, losses = head_loss(hidden.astype(jnp.bfloat16), table, targets, weights)
    assert total.dtype == losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, by_optax(hidden, table, targets, weights, 0.0)[1], atol=0.2)
