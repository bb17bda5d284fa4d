"""The VQGAN autoencoder (Esser et al., arXiv 2012.09841): pixels -> latents -> nearest codes -> pixels.

Modules have the names of the taming-transformers release (`encoder.down.0.block.1.norm1`), which has no `PatchEncoder`.
Feature maps are [B H W C], all parameters float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.named_parameters import named_generator, parameters


def num_norm_groups(channels: int, most_groups: int) -> int:
    """Groups of a group normalization: `most_groups`, or the largest number below it that divides `channels`."""
    return next(g for g in range(min(most_groups, channels), 0, -1) if channels % g == 0)


def group_norm(channels: int, most_groups: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group normalization over `num_norm_groups` groups."""
    return nnx.GroupNorm(channels, num_groups=num_norm_groups(channels, most_groups), epsilon=1e-6, rngs=rngs)


def conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution that keeps the side: `size` x `size`, stride 1, zero padding."""
    return nnx.Conv(inputs, outputs, (size, size), padding=size // 2, rngs=rngs)


class ResBlock(nnx.Module):
    """norm, SiLU, conv, twice, added to the input (through a 1x1 convolution where the widths differ)."""

    def __init__(self, inputs: int, outputs: int, groups: int, rngs: nnx.Rngs) -> None:
        self.norm1 = group_norm(inputs, groups, rngs)
        self.conv1 = conv(inputs, outputs, 3, rngs)
        self.norm2 = group_norm(outputs, groups, rngs)
        self.conv2 = conv(outputs, outputs, 3, rngs)
        self.nin_shortcut = conv(inputs, outputs, 1, rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B H W C1"]) -> Float[Array, "B H W C2"]:
        """Same side, new width."""
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nnx.Module):
    """Single-head self-attention over all positions of the feature map, added to the input."""

    def __init__(self, channels: int, groups: int, rngs: nnx.Rngs) -> None:
        self.norm = group_norm(channels, groups, rngs)
        self.q = conv(channels, channels, 1, rngs)
        self.k = conv(channels, channels, 1, rngs)
        self.v = conv(channels, channels, 1, rngs)
        self.proj_out = conv(channels, channels, 1, rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Same shape; cost grows with (H W)^2."""
        batch, height, width, channels = x.shape
        h = self.norm(x)
        q, k, v = (layer(h).reshape(batch, height * width, channels) for layer in (self.q, self.k, self.v))
        weights = nnx.softmax(jnp.einsum("bqc,bkc->bqk", q, k) * channels**-0.5)
        h = jnp.einsum("bqk,bkc->bqc", weights, v).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nnx.Module):
    """Halves the side by a stride-2 convolution."""

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        # Zeros only below and to the right, as in the published weights: (H + 1 - 3) // 2 + 1 = H / 2 for even H.
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=2, padding=((0, 1), (0, 1)), rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        """[B H W C] -> [B H/2 W/2 C]."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles the side by repeating pixels, then convolves."""

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.conv = conv(channels, channels, 3, rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        """[B H W C] -> [B 2H 2W C]."""
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))


def _widths(config: VQGANConfig) -> list[int]:
    return [config.base_channels * multiplier for multiplier in config.channel_multipliers]


class Level(nnx.Module):
    """The blocks at one resolution, then a change of side; `attn` is empty, or has one entry per block."""

    def __init__(
        self, config: VQGANConfig, level: int, inputs: int, num_blocks: int, rngs: nnx.Rngs, is_decoder: bool
    ) -> None:
        outputs, groups = _widths(config)[level], config.norm_groups
        widths = [inputs] + [outputs] * (num_blocks - 1)
        has_attention = config.resolution // 2**level in config.attention_resolutions
        self.block = nnx.List([ResBlock(width, outputs, groups, rngs) for width in widths])
        self.attn = nnx.List([AttentionBlock(outputs, groups, rngs) for _ in range(num_blocks * has_attention)])
        is_lowest = level == len(config.channel_multipliers) - 1
        self.downsample = None if is_decoder or is_lowest else Downsample(outputs, rngs)
        self.upsample = Upsample(outputs, rngs) if is_decoder and level > 0 else None

    def __call__(self, x: Float[Array, "B H1 W1 C1"]) -> Float[Array, "B H2 W2 C2"]:
        """[B H W C] -> the outputs' width, the side kept, halved or doubled."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class Middle(nnx.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels: int, groups: int, rngs: nnx.Rngs) -> None:
        self.block_1 = ResBlock(channels, channels, groups, rngs)
        self.attn_1 = AttentionBlock(channels, groups, rngs)
        self.block_2 = ResBlock(channels, channels, groups, rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class ConvEncoder(nnx.Module):
    """Pixels -> feature map of the code grid."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs) -> None:
        widths = _widths(config)
        inputs = [config.base_channels, *widths[:-1]]
        self.conv_in = conv(config.in_channels, config.base_channels, 3, rngs)
        levels = [
            Level(config, level, width, config.num_res_blocks, rngs, is_decoder=False)
            for level, width in enumerate(inputs)
        ]
        self.down = nnx.List(levels)
        self.mid = Middle(widths[-1], config.norm_groups, rngs) if config.mid_block else None
        self.norm_out = group_norm(widths[-1], config.norm_groups, rngs)
        self.conv_out = conv(widths[-1], config.latent_channels, 3, rngs)

    def __call__(self, pixels: Float[Array, "B R R C"]) -> Float[Array, "B G G Z"]:
        """[B R R C] in [-1, 1] -> [B G G latent_channels]."""
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        x = self.mid(x) if self.mid else x
        return self.conv_out(nnx.silu(self.norm_out(x)))


class PatchEncoder(nnx.Module):
    """Pixels -> feature map of the code grid, each position from its own patch of pixels alone."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs) -> None:
        side = config.factor
        # All that an encoder of one patch has is its width, and at the side of the code grid width is cheap.
        width = 2 * _widths(config)[-1]
        self.patch = nnx.Conv(config.in_channels, width, (side, side), strides=side, padding="VALID", rngs=rngs)
        self.mix = conv(width, width, 1, rngs)
        self.conv_out = conv(width, config.latent_channels, 1, rngs)

    def __call__(self, pixels: Float[Array, "B R R C"]) -> Float[Array, "B G G Z"]:
        """[B R R C] in [-1, 1] -> [B G G latent_channels]."""
        return self.conv_out(nnx.silu(self.mix(nnx.silu(self.patch(pixels)))))


# By `VQGANConfig.encoder`.
_ENCODERS: dict[str, type[ConvEncoder] | type[PatchEncoder]] = {"convolutional": ConvEncoder, "patch": PatchEncoder}


class ConvDecoder(nnx.Module):
    """Feature map of the code grid -> pixels; `up[0]` is the level of the full resolution."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs) -> None:
        widths = _widths(config)
        inputs = [*widths[1:], widths[-1]]
        self.conv_in = conv(config.latent_channels, widths[-1], 3, rngs)
        self.mid = Middle(widths[-1], config.norm_groups, rngs) if config.mid_block else None
        levels = [
            Level(config, level, width, config.num_res_blocks + 1, rngs, is_decoder=True)
            for level, width in enumerate(inputs)
        ]
        self.up = nnx.List(levels)
        self.norm_out = group_norm(widths[0], config.norm_groups, rngs)
        self.conv_out = conv(widths[0], config.in_channels, 3, rngs)

    def features(self, latents: Float[Array, "B G G Z"]) -> Float[Array, "B R R F"]:
        """All but the last convolution: what the adaptive discriminator weight needs in addition to the pixels."""
        x = self.conv_in(latents)
        x = self.mid(x) if self.mid else x
        for level in reversed(self.up):
            x = level(x)
        return nnx.silu(self.norm_out(x))


class Codebook(nnx.Module):
    """`codebook_size` vectors; `embedding` is [K E]."""

    def __init__(self, codebook_size: int, embedding_dim: int, rngs: nnx.Rngs) -> None:
        bound = 1 / codebook_size
        self.embedding = nnx.Param(
            jax.random.uniform(rngs.params(), (codebook_size, embedding_dim), jnp.float32, -bound, bound)
        )

    def nearest(self, latents: Float[Array, "B G G E"]) -> Int[Array, "B G G"]:
        """The code of smallest squared distance; the lowest index among equals."""
        embedding = self.embedding[...]
        # |z - e|^2 without |z|^2, which is the same for every code. In full precision: a bfloat16 product, the default
        # on a TPU, would name another code for many latents.
        products = jnp.einsum("bghe,ke->bghk", latents, embedding, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(jnp.sum(embedding**2, axis=-1) - 2 * products, axis=-1)

    def lookup(self, codes: Int[Array, "B G G"]) -> Float[Array, "B G G E"]:
        return self.embedding[...][codes]


class VQGAN(nnx.Module):
    """The whole autoencoder of one `VQGANConfig`."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs) -> None:
        self.encoder = _ENCODERS[config.encoder](config, rngs)
        self.quant_conv = conv(config.latent_channels, config.embedding_dim, 1, rngs)
        self.quantize = Codebook(config.codebook_size, config.embedding_dim, rngs)
        self.post_quant_conv = conv(config.embedding_dim, config.latent_channels, 1, rngs)
        self.decoder = ConvDecoder(config, rngs)

    def encode(self, pixels: Float[Array, "B R R C"]) -> Float[Array, "B G G E"]:
        """Pixels in [-1, 1] -> latents, before quantization."""
        return self.quant_conv(self.encoder(pixels))

    def features(self, vectors: Float[Array, "B G G E"]) -> Float[Array, "B R R F"]:
        """Code vectors -> what the decoder's last convolution turns into pixels."""
        return self.decoder.features(self.post_quant_conv(vectors))

    def decode(self, vectors: Float[Array, "B G G E"]) -> Float[Array, "B R R C"]:
        """Code vectors -> pixels, about [-1, 1] but not clamped."""
        return self.decoder.conv_out(self.features(vectors))


def to_unit_range(images: UInt8[Array, "B R R C"]) -> Float[Array, "B R R C"]:
    """0..255 -> [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def from_unit_range(pixels: Float[Array, "B R R C"]) -> UInt8[Array, "B R R C"]:
    """[-1, 1] -> 0..255, clamped and rounded."""
    return jnp.round((jnp.clip(pixels, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def straight_through(latents: Float[Array, "B G G E"], vectors: Float[Array, "B G G E"]) -> Float[Array, "B G G E"]:
    """The value of `vectors` with the gradient of `latents` (van den Oord et al., arXiv 1711.00937, section 3.2)."""
    return latents + jax.lax.stop_gradient(vectors - latents)


def abstract_vqgan(config: VQGANConfig) -> VQGAN:
    """The module with shapes in place of arrays: costs nothing, for `bind` and `parameters`."""
    return nnx.eval_shape(lambda: VQGAN(config, nnx.Rngs(0)))


def initial_parameters(module: nnx.Module, seed: int) -> dict[str, np.ndarray]:
    """Random values for an abstract `module`; each follows from the seed and its name alone.

    Kernels are normal with variance 1 / fan-in, the codebook is uniform within 1/K, biases are 0 and scales 1.
    """
    values = {}
    for name, abstract in parameters(module).items():
        random = named_generator(seed, name)
        shape, kind = abstract.shape, name.rpartition(".")[2]
        if kind == "kernel":
            value = random.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        elif kind == "embedding":
            value = random.uniform(-1 / shape[0], 1 / shape[0], shape)
        else:
            value = np.full(shape, float(kind == "scale"))
        values[name] = value.astype(np.float32)
    return values
