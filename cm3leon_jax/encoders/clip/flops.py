"""FLOPs of a CLIP by formula: of encoding a pair of a text and an image, and of a training.

A matmul takes 2 FLOPs per number of its matrix and token, and its backward pass twice that; attention is computed
without regard to its mask. In the backward pass a layer is computed once more, up to its last matmul.
"""

from __future__ import annotations

from cm3leon_jax.encoders.clip.config import ClipConfig

_CHANNELS = 3


def clip_flops(config: ClipConfig) -> tuple[float, float]:
    """Computes the FLOPs of encoding one pair, and those of the whole training."""
    training = config.training
    return pair_flops(config), float(training.num_steps) * training.batch_size * step_flops(config)


def pair_flops(config: ClipConfig) -> float:
    """Computes the FLOPs of encoding a text of full length and an image."""
    return sum(layers_flops(config)) + _patch_flops(config) + _projection_flops(config)


def step_flops(config: ClipConfig) -> float:
    """Computes the FLOPs per pair of a training step."""
    products = 2.0 * config.training.batch_size * config.embedding_dim
    # Pixels have no gradient.
    layers = 4 * sum(layers_flops(config)) - _last_matmul_flops(config)
    return layers + 2 * _patch_flops(config) + 3 * (_projection_flops(config) + products)


def layers_flops(config: ClipConfig) -> tuple[float, float]:
    """Computes the FLOPs of the layers of the text tower and of the image tower."""
    text = config.text_layers * _layer_flops(config.text_dim, config.max_text_tokens)
    return text, config.image_layers * _layer_flops(config.image_dim, _image_length(config))


def _layer_flops(dim: int, length: int) -> float:
    """FLOPs of one layer: four matrices of attention, two of four times the width, and all pairs of tokens."""
    return 2.0 * 12 * dim**2 * length + 4.0 * length**2 * dim


def _last_matmul_flops(config: ClipConfig) -> float:
    text = config.text_layers * config.text_dim**2 * config.max_text_tokens
    return 2.0 * 4 * (text + config.image_layers * config.image_dim**2 * _image_length(config))


def _image_length(config: ClipConfig) -> int:
    """The patches of an image, and a class token."""
    return (config.resolution // config.patch_size) ** 2 + 1


def _patch_flops(config: ClipConfig) -> float:
    return 2.0 * config.resolution**2 * _CHANNELS * config.image_dim


def _projection_flops(config: ClipConfig) -> float:
    return 2.0 * (config.text_dim + config.image_dim) * config.embedding_dim
