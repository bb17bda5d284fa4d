"""FLOPs of a VQGAN by formula: of a code for an image, and of a training.

A convolution takes 2 FLOPs for each pair of an input and an output channel, at each of its taps that lies inside of the
image; its backward pass takes twice that, once for the kernel and once for the input. Norms and activations count
nothing.
"""

from __future__ import annotations

from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.lpips import CONVOLUTIONS, WIDTHS


def vqgan_flops(config: VQGANConfig) -> tuple[float, float]:
    """Computes the FLOPs of encoding one image, and those of the whole training."""
    training = config.training
    num_adversarial = max(0, training.num_steps - training.discriminator_start)
    if training.discriminator_weight == 0:
        num_adversarial = 0
    of_image = training.num_steps * step_flops(config) + num_adversarial * adversarial_flops(config)
    return encoder_flops(config) + nearest_flops(config), training.batch_size * of_image


def step_flops(config: VQGANConfig) -> float:
    """Computes the FLOPs per image of a training step without the discriminator."""
    training = config.training
    # Pixels have no gradient, and neither has the choice of a code.
    total = 3 * (encoder_flops(config) + decoder_flops(config)) - _first_layer_flops(config) + nearest_flops(config)
    if training.codebook_update == "ema":
        total += 2.0 * config.grid**2 * config.codebook_size * config.embedding_dim
    if training.perceptual_weight > 0:
        # Features of both images, and a gradient for the reconstruction.
        total += 3 * _vgg_flops(config.resolution)
    return total


def adversarial_flops(config: VQGANConfig) -> float:
    """Computes the FLOPs per image that the discriminator adds to a training step.

    It sees the image and the reconstruction once each, with gradients for its kernels, and once more for those of the
    reconstruction, whose scores are shared.
    """
    layers = _discriminator_layers(config)
    last_kernel = _conv(config.base_channels * config.channel_multipliers[0], config.in_channels, 3, config.resolution)
    # Below the first layer there are pixels, which have a gradient for the autoencoder alone.
    return 7 * sum(layers) - 2 * layers[0] + 2 * last_kernel


def encoder_flops(config: VQGANConfig) -> float:
    """Computes the FLOPs per image of the encoder, the choice of codes aside."""
    widths, grid = _widths(config), config.grid
    total = _first_layer_flops(config) + _conv(config.latent_channels, config.embedding_dim, 1, grid)
    if config.encoder == "patch":
        width = 2 * widths[-1]
        return total + _conv(width, width, 1, grid) + _conv(width, config.latent_channels, 1, grid)
    for level, inputs in enumerate([config.base_channels, *widths[:-1]]):
        total += _level_flops(config, level, inputs, config.num_res_blocks)
        if level < len(widths) - 1:
            # Zeros on two sides only.
            total += 2.0 * widths[level] ** 2 * (3 * (config.resolution >> (level + 1)) - 1) ** 2
    return total + _middle_flops(config) + _conv(widths[-1], config.latent_channels, 3, grid)


def decoder_flops(config: VQGANConfig) -> float:
    """Computes the FLOPs per image of the decoder."""
    widths, grid = _widths(config), config.grid
    total = _conv(config.embedding_dim, config.latent_channels, 1, grid) + _middle_flops(config)
    total += _conv(config.latent_channels, widths[-1], 3, grid)
    for level, inputs in enumerate([*widths[1:], widths[-1]]):
        total += _level_flops(config, level, inputs, config.num_res_blocks + 1)
        if level > 0:
            total += _conv(widths[level], widths[level], 3, config.resolution >> (level - 1))
    return total + _conv(widths[0], config.in_channels, 3, config.resolution)


def nearest_flops(config: VQGANConfig) -> float:
    """Computes the FLOPs per image of comparing latents with all codes."""
    return 2.0 * config.grid**2 * config.codebook_size * config.embedding_dim


def _widths(config: VQGANConfig) -> list[int]:
    return [config.base_channels * multiplier for multiplier in config.channel_multipliers]


def _conv(inputs: int, outputs: int, size: int, side: int) -> float:
    """FLOPs of a convolution that keeps the side, by zeros of half its size around."""
    outside = size // 2 * (size // 2 + 1)
    return 2.0 * inputs * outputs * (size * side - outside) ** 2


def _first_layer_flops(config: VQGANConfig) -> float:
    if config.encoder == "patch":
        return 2.0 * config.in_channels * 2 * _widths(config)[-1] * config.resolution**2
    return _conv(config.in_channels, config.base_channels, 3, config.resolution)


def _block_flops(inputs: int, outputs: int, side: int) -> float:
    shortcut = _conv(inputs, outputs, 1, side) if inputs != outputs else 0.0
    return _conv(inputs, outputs, 3, side) + _conv(outputs, outputs, 3, side) + shortcut


def _attention_flops(channels: int, side: int) -> float:
    return 4 * _conv(channels, channels, 1, side) + 4.0 * channels * side**4


def _level_flops(config: VQGANConfig, level: int, inputs: int, num_blocks: int) -> float:
    """FLOPs of the blocks of a level, of which there is at least one."""
    outputs, side = _widths(config)[level], config.resolution >> level
    blocks = sum(_block_flops(width, outputs, side) for width in [inputs] + [outputs] * (num_blocks - 1))
    has_attention = side in config.attention_resolutions
    return blocks + (num_blocks * _attention_flops(outputs, side) if has_attention else 0.0)


def _middle_flops(config: VQGANConfig) -> float:
    if not config.mid_block:
        return 0.0
    width = _widths(config)[-1]
    return 2 * _block_flops(width, width, config.grid) + _attention_flops(width, config.grid)


def _discriminator_layers(config: VQGANConfig) -> list[float]:
    """FLOPs of each layer of the discriminator, of 4x4 taps with one zero around."""
    training = config.training
    widths = [training.discriminator_channels * min(2**layer, 8) for layer in range(training.discriminator_layers + 1)]
    sizes = zip([config.in_channels, *widths], [*widths, 1], strict=True)
    side, found = config.resolution, []
    for layer, (inputs, outputs) in enumerate(sizes):
        side = side // 2 if layer < training.discriminator_layers else side - 1
        found.append(2.0 * inputs * outputs * (4 * side - 2) ** 2)
    return found


def _vgg_flops(side: int) -> float:
    """FLOPs of the features of one image."""
    total, inputs = 0.0, 3
    for stage, (width, convolutions) in enumerate(zip(WIDTHS, CONVOLUTIONS, strict=True)):
        for _ in convolutions:
            total += _conv(inputs, width, 3, side >> stage)
            inputs = width
    return total
