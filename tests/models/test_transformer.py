"""The transformer: sizes of the paper, causality, packing, scanning, caching."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.transformer import Norm, Transformer, parameter_count

V, L = 128, 24


def build(config: ModelConfig) -> Transformer:
    """A model whose zero-initialized outputs are filled, so that every layer matters."""
    model = Transformer(config, V, L, nnx.Rngs(0), image_length=4)
    for index, parameter in enumerate((model.blocks.attention.output, model.blocks.feed_forward.down)):
        parameter.set_value(0.1 * jax.random.normal(jax.random.key(index), parameter.get_value().shape))
    return model


def nowhere(tokens: jax.Array) -> jax.Array:
    return jnp.zeros_like(tokens)


def hidden_states(model: Transformer, tokens: jax.Array, start: jax.Array | None = None) -> jax.Array:
    start = jnp.zeros_like(tokens) if start is None else start
    positions = jnp.arange(tokens.shape[1]) - start
    return model(tokens, positions, start, nowhere(tokens))


@pytest.mark.parametrize(
    ("layers", "width", "heads", "billions"), [(24, 1024, 16, 0.374), (24, 1536, 16, 0.787), (32, 4096, 32, 6.73)]
)
def test_the_papers_sizes(layers, width, heads, billions):
    config = ModelConfig(num_layers=layers, model_dim=width, num_heads=heads)
    assert parameter_count(config, 66_056, 4096) / 1e9 == pytest.approx(billions, rel=2e-3)


def test_initialization_is_the_papers(tiny_model):
    model = Transformer(ModelConfig(num_layers=2, model_dim=256, num_heads=4), 1024, 512, nnx.Rngs(0))
    table, positions = model.token_embedding[...], model.position_embedding[...]
    assert jnp.abs(table).max() <= 3 * 0.006
    # A normal that is cut at 3 standard deviations keeps 0.9866 of its spread.
    assert table.std() == pytest.approx(0.006 * 0.9866, rel=0.01)
    assert positions.std() == pytest.approx(0.0002 * 0.9866, rel=0.02)
    assert not model.blocks.attention.output[...].any()
    assert not model.blocks.feed_forward.down[...].any()
    query = model.blocks.attention.query[...]
    assert not np.array_equal(query[0], query[1]), "every layer has its own numbers"


def test_no_token_sees_a_later_one(tiny_model):
    model = build(tiny_model)
    tokens = jax.random.randint(jax.random.key(1), (2, L), 0, V)
    before = hidden_states(model, tokens)
    after = hidden_states(model, tokens.at[:, 15].set((tokens[:, 15] + 1) % V))
    np.testing.assert_array_equal(before[:, :15], after[:, :15])
    assert jnp.abs(before[:, 15:] - after[:, 15:]).max() > 1e-3


def test_a_packed_document_is_as_if_alone(tiny_model):
    model = build(tiny_model)
    tokens = jax.random.randint(jax.random.key(2), (1, L), 0, V)
    start = jnp.where(jnp.arange(L) < 9, 0, 9)[None]
    packed = hidden_states(model, tokens, start)
    np.testing.assert_allclose(packed[:, :9], hidden_states(model, tokens[:, :9]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 9:], hidden_states(model, tokens[:, 9:]), atol=1e-5)


@pytest.mark.parametrize(
    "remat", [pytest.param(name, marks=pytest.mark.slow) for name in ("full", "save_attention", "none")] + ["save_dots"]
)
def test_scanned_looped_and_rematerialized_layers_agree(tiny_model, remat):
    tokens = jax.random.randint(jax.random.key(3), (2, L), 0, V)
    _, parameters = nnx.split(build(tiny_model))

    def loss_and_gradient(config):
        graph, _ = nnx.split(nnx.eval_shape(lambda: Transformer(config, V, L, nnx.Rngs(0))))

        def loss(parameters):
            model = nnx.merge(graph, parameters)
            return jax.nn.logsumexp(model.logits(hidden_states(model, tokens))).mean()

        return jax.jit(jax.value_and_grad(loss))(parameters)

    scanned = loss_and_gradient(tiny_model)
    looped = loss_and_gradient(dataclasses.replace(tiny_model, scan_layers=False, remat=remat))
    saved = loss_and_gradient(dataclasses.replace(tiny_model, remat=remat))
    for other in (looped, saved):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), scanned, other)


@pytest.mark.parametrize(
    "changes",
    [
        dict(positions="learned"),
        dict(positions="rotary"),
        dict(positions="learned+rotary", image_position_embedding=True),
        dict(positions="rotary", image_position_embedding=True, rotary_image_positions=True),
        dict(biases=True, norm_scale_and_bias=True, activation="gelu"),
        dict(biases=True, norm_position="sum", embedding_dim=16),
        dict(
            norm="rms",
            norm_scale_and_bias=True,
            gated=True,
            activation="silu",
            num_key_value_heads=2,
            positions="rotary",
        ),
        dict(query_key_norm="layer", biases=True, gated=True, num_key_value_heads=1),
        dict(query_key_norm="rms", positions="rotary", rotary_base=500_000.0, tied_embeddings=False),
        dict(norm_position="output", norm="rms", query_key_norm="layer", query_key_norm_per_head=True),
        dict(query_key_value_biases=True, head_size=6, num_key_value_heads=2),
        dict(positions="rotary", rotary_scaling="linear", model_dim=36, num_heads=8, head_size=4),
        dict(positions="rotary", rotary_scaling="llama3", rotary_original_length=8, head_size=16),
    ],
)
def test_cached_steps_equal_the_whole_forward(tiny_model, changes):
    model = build(dataclasses.replace(tiny_model, position_init_std=0.1, **changes))
    tokens = jax.random.randint(jax.random.key(4), (3, L), 0, V)
    # Rows begin at different places, as prompts padded on the left do.
    start = jnp.array([0, 2, 5])[:, None]
    starts = jnp.broadcast_to(start, (3, L))
    places = jnp.maximum(jnp.arange(L) - start, -1)
    images = jax.random.randint(jax.random.key(9), (3, L), 0, 6)
    whole = [
        model(*(x[row : row + 1, int(start[row, 0]) :] for x in (tokens, places, starts - start, images)))[0]
        for row in range(3)
    ]
    graph, parameters = nnx.split(model.unstacked())
    step = jax.jit(lambda *inputs: nnx.merge(graph, parameters).extend(*inputs))
    cache, hidden = model.empty_cache(3, L), []
    for i, j in [(0, 8), *((i, i + 1) for i in range(8, L))]:
        found, cache = step(*(x[:, i:j] for x in (tokens, places, starts, images)), cache, jnp.asarray(i))
        hidden.append(found)
    for row, expected in enumerate(whole):
        np.testing.assert_allclose(jnp.concatenate(hidden, axis=1)[row, int(start[row, 0]) :], expected, atol=1e-5)


def test_bfloat16_stays_near_float32(tiny_model):
    tokens = jax.random.randint(jax.random.key(5), (2, L), 0, V)
    exact = build(tiny_model)
    rounded = build(dataclasses.replace(tiny_model, compute_dtype="bfloat16"))
    a, b = exact.logits(hidden_states(exact, tokens)), rounded.logits(hidden_states(rounded, tokens))
    assert b.dtype == jnp.float32
    assert jnp.abs(a - b).max() < 0.05 * jnp.abs(a).max()


def test_layer_norm_has_mean_zero_and_variance_one():
    norm = Norm("layer", 1e-5, (64,), ("embed",), is_affine=False)
    normed = norm(3.0 + 7.0 * jax.random.normal(jax.random.key(6), (5, 64)))
    np.testing.assert_allclose(normed.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(normed.std(-1), 1, atol=1e-3)
