"""The reference attention against a loop in NumPy, and the fused ones against the reference."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.models import fused_attention
from cm3leon_jax.models.attention import attention
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh


def test_against_a_loop():
    B, L, H, Dh = 2, 7, 3, 4
    query, key, value = (jax.random.normal(jax.random.key(i), (B, L, H, Dh)) for i in range(3))
    start = jnp.array([[0, 0, 0, 3, 3, 3, 6], [0, 1, 1, 1, 4, 4, 4]])
    found = attention(query, key, value, start)
    for b in range(B):
        for i in range(L):
            for h in range(H):
                seen = slice(start[b, i], i + 1)
                scores = np.asarray(key[b, seen, h] @ query[b, i, h]) / np.sqrt(Dh)
                weights = np.exp(scores - scores.max())
                expected = (weights / weights.sum()) @ value[b, seen, h]
                np.testing.assert_allclose(found[b, i, h], expected, atol=1e-5)


def grouped_inputs(L: int, Dh: int):
    B, H, K = 4, 4, 2
    query = jax.random.normal(jax.random.key(0), (B, L, H, Dh))
    key, value = (jax.random.normal(jax.random.key(seed), (B, L, K, Dh)) for seed in (1, 2))
    # One document; two; a short one, a long one and padding; one that begins inside a block of queries.
    rows = [
        [0] * L,
        [0] * 100 + [100] * (L - 100),
        [0] * 7 + [7] * 200 + [*range(207, L)],
        [0] * 129 + [129] * (L - 129),
    ]
    return query, key, value, jnp.array(rows)


def outputs_and_gradients(attend, query, key, value, start):
    def loss(query, key, value):
        out = attend(query, key, value, start)
        return (out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(query, key, value)
    return out, gradients


def whole(query, key, value, start):
    """Every score of every pair at once, each key head repeated for its queries."""
    L, group = query.shape[1], query.shape[2] // key.shape[2]
    key, value = jnp.repeat(key, group, axis=2), jnp.repeat(value, group, axis=2)
    scores = jnp.einsum("BLHd,BSHd->BHLS", query, key) * query.shape[-1] ** -0.5
    index = jnp.arange(L)
    seen = (index[None, None] <= index[None, :, None]) & (index[None, None] >= start[..., None])
    return jnp.einsum("BHLS,BSHd->BLHd", jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30)), value)


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


@pytest.mark.parametrize("on_mesh", [pytest.param(False, marks=pytest.mark.slow), True])
def test_blocks_of_queries_and_groups_of_heads_change_nothing(on_mesh):
    inputs = grouped_inputs(L=256, Dh=16)
    mesh = make_mesh(MeshConfig(replica=1, fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh) if on_mesh else contextlib.nullcontext():
        found = outputs_and_gradients(attention, *inputs)
    close(found, outputs_and_gradients(whole, *inputs))


def heads_first(kernel, **options):
    def attend(query, key, value, start):
        return jnp.swapaxes(kernel(*(jnp.swapaxes(x, 1, 2) for x in (query, key, value)), start, **options), 1, 2)

    return attend


@pytest.mark.parametrize("mesh", [None, MeshConfig(replica=2, fsdp=2, tensor=2)], ids=["one", "eight"])
@pytest.mark.parametrize("name", [pytest.param("splash", marks=pytest.mark.slow), "tokamax"])
def test_fused_attention_is_the_reference(name, mesh):
    if name == "tokamax":
        pytest.importorskip("tokamax", reason="tokamax is not installed")
        attend = heads_first(fused_attention.tokamax_attention)
    else:
        attend = heads_first(fused_attention.splash_attention, interpret=True)
    inputs = grouped_inputs(L=256, Dh=64)
    expected = outputs_and_gradients(attention, *inputs)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(make_mesh(mesh)):
        close(outputs_and_gradients(attend, *inputs), expected)


def test_splash_names_a_length_it_cannot_take():
    assert fused_attention.splash_block(4224) == 384
    with pytest.raises(UserError, match="sequence_length 4100 is no multiple of 128"):
        fused_attention.splash_block(4100)
