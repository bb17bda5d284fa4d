"""Shapes follow the config, names follow the published weights, quantization is the nearest code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.image_tokenizers.vqgan import model as vqgan
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.named_parameters import bind, parameters

TINY = VQGANConfig(
    resolution=8,
    in_channels=1,
    base_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    latent_channels=12,
    embedding_dim=4,
    codebook_size=16,
)
THREE_LEVELS = VQGANConfig(
    resolution=32,
    in_channels=3,
    base_channels=6,
    channel_multipliers=(1, 1, 3),
    num_res_blocks=2,
    attention_resolutions=(16,),
    latent_channels=5,
    embedding_dim=7,
    codebook_size=11,
)
PUBLISHED = VQGANConfig(resolution=512, channel_multipliers=(1, 1, 2, 2, 4))


@pytest.mark.parametrize("config", [TINY, THREE_LEVELS, PUBLISHED], ids=["tiny", "three levels", "published"])
def test_pixels_go_to_the_code_grid_and_back(config: VQGANConfig) -> None:
    side, grid = config.resolution, config.grid
    pixels = jax.ShapeDtypeStruct((2, side, side, config.in_channels), jnp.float32)
    latents = nnx.eval_shape(lambda x: vqgan.VQGAN(config, nnx.Rngs(0)).encode(x), pixels)
    assert latents.shape == (2, grid, grid, config.embedding_dim)
    assert nnx.eval_shape(lambda z: vqgan.VQGAN(config, nnx.Rngs(0)).decode(z), latents).shape == pixels.shape


def test_names_are_those_of_the_published_weights() -> None:
    shapes = {name: value.shape for name, value in parameters(vqgan.abstract_vqgan(PUBLISHED)).items()}
    assert shapes["encoder.conv_in.kernel"] == (3, 3, 3, 128)
    assert shapes["encoder.down.2.block.0.nin_shortcut.kernel"] == (1, 1, 128, 256)
    assert shapes["encoder.down.3.downsample.conv.kernel"] == (3, 3, 256, 256)
    assert "encoder.down.4.downsample.conv.kernel" not in shapes
    assert shapes["encoder.mid.attn_1.proj_out.kernel"] == (1, 1, 512, 512)
    assert shapes["quant_conv.kernel"] == (1, 1, 256, 256)
    assert shapes["quantize.embedding"] == (8192, 256)
    assert shapes["decoder.up.4.block.2.conv2.kernel"] == (3, 3, 512, 512)
    assert shapes["decoder.up.0.block.0.conv1.kernel"] == (3, 3, 128, 128)
    assert "decoder.up.0.upsample.conv.kernel" not in shapes
    assert not any(".attn." in name for name in shapes)


def test_the_patch_encoder_changes_no_other_part() -> None:
    shapes, others = (
        {name: value.shape for name, value in parameters(vqgan.abstract_vqgan(config)).items()}
        for config in (dataclasses.replace(TINY, encoder="patch"), TINY)
    )
    encoder = {name.removeprefix("encoder.") for name in shapes if name.startswith("encoder.")}
    assert encoder == {f"{layer}.{kind}" for layer in ("patch", "mix", "conv_out") for kind in ("kernel", "bias")}
    assert {name: shape for name, shape in shapes.items() if not name.startswith("encoder.")} == {
        name: shape for name, shape in others.items() if not name.startswith("encoder.")
    }


def test_attention_stands_only_where_the_config_asks() -> None:
    names = parameters(vqgan.abstract_vqgan(THREE_LEVELS))
    assert {name.split(".attn.")[0] for name in names if ".attn." in name} == {"encoder.down.1", "decoder.up.1"}
    assert {name.split(".")[4] for name in names if name.startswith("decoder.up.1.attn.")} == {"0", "1", "2"}


@pytest.mark.parametrize(("channels", "most", "groups"), [(128, 32, 32), (48, 32, 24), (8, 32, 8), (12, 5, 4)])
def test_norm_groups_divide_the_channels(channels: int, most: int, groups: int) -> None:
    assert vqgan.group_norm(channels, most, nnx.Rngs(0)).num_groups == groups


def test_nearest_is_the_smallest_distance_and_lookup_its_vector() -> None:
    random = np.random.default_rng(0)
    embedding, latents = random.normal(size=(16, 4)), random.normal(size=(2, 3, 3, 4))
    book = bind(
        nnx.eval_shape(lambda: vqgan.Codebook(16, 4, nnx.Rngs(0))), {"embedding": jnp.asarray(embedding, jnp.float32)}
    )
    codes = book.nearest(jnp.asarray(latents, jnp.float32))
    distances = ((latents[..., None, :] - embedding) ** 2).sum(-1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))
    np.testing.assert_allclose(book.lookup(codes), embedding[distances.argmin(-1)], rtol=1e-6)


def test_straight_through_has_the_codes_value_and_the_latents_gradient() -> None:
    latents, vectors = jax.random.normal(jax.random.key(0), (2, 1, 2, 2, 3))
    cotangent = jax.random.normal(jax.random.key(1), latents.shape)
    value, vjp_fn = jax.vjp(vqgan.straight_through, latents, vectors)
    np.testing.assert_allclose(value, vectors, atol=1e-6)
    to_latents, to_vectors = vjp_fn(cotangent)
    np.testing.assert_array_equal(to_latents, cotangent)
    np.testing.assert_array_equal(to_vectors, 0)


def test_downsample_pads_below_and_to_the_right() -> None:
    layer = bind(
        nnx.eval_shape(lambda: vqgan.Downsample(1, nnx.Rngs(0))),
        {"conv.kernel": jnp.ones((3, 3, 1, 1)), "conv.bias": jnp.zeros(1)},
    )
    corner = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
    np.testing.assert_array_equal(layer(corner)[0, ..., 0], [[1, 0], [0, 0]])
    last = jnp.zeros((1, 4, 4, 1)).at[0, 3, 3, 0].set(1.0)
    np.testing.assert_array_equal(layer(last)[0, ..., 0], [[0, 0], [0, 1]])


def test_first_weights_follow_from_seed_and_name() -> None:
    model = vqgan.abstract_vqgan(TINY)
    first, again, other = (vqgan.initial_parameters(model, seed) for seed in (0, 0, 1))
    kernel = "decoder.mid.block_1.conv1.kernel"
    np.testing.assert_array_equal(first[kernel], again[kernel])
    assert not np.array_equal(first[kernel], other[kernel])
    assert np.std(first[kernel]) == pytest.approx((9 * 16) ** -0.5, rel=0.1)
    assert {name: value.shape for name, value in first.items()} == {
        name: value.shape for name, value in parameters(model).items()
    }
