"""LPIPS, the perceptual distance of Zhang et al. (arXiv 1801.03924): weighted differences of VGG16 features."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError, safe_open

from cm3leon_jax.errors import UserError

# Widths of VGG16's five stages, and torchvision's indices of their convolutions; the features are those after a stage's
# last ReLU (relu1_2, relu2_2, relu3_3, relu4_3, relu5_3), with a 2x2 maximum between stages.
WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))

# Pixels of which one is left after the four maxima.
SMALLEST_SIDE = 16

# LPIPS's own normalization of RGB in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a weights file, as torchvision and lpips name and lay them out."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for stage, (width, convolutions) in enumerate(zip(WIDTHS, CONVOLUTIONS, strict=True)):
        for index in convolutions:
            shapes[f"features.{index}.weight"] = (width, inputs, 3, 3)
            shapes[f"features.{index}.bias"] = (width,)
            inputs = width
        shapes[f"lin{stage}.model.1.weight"] = (1, width, 1, 1)
    return shapes


def load_lpips(file: str | Path) -> dict[str, np.ndarray]:
    """Reads the weights from one safetensors file; kernels come back as [h w in out].

    Raises a `UserError` if it cannot be read, a tensor is missing or of another shape, or a linear weight is negative.
    """
    weights = {}
    try:
        with safe_open(file, framework="numpy") as tensors:
            present = set(tensors.keys())
            for name, shape in expected_shapes().items():
                if name not in present:
                    raise UserError(f"{file} has no tensor {name}: it must hold VGG16 and the LPIPS linear layers")
                tensor = tensors.get_tensor(name).astype(np.float32)
                if tensor.shape != shape:
                    raise UserError(f"{file}: tensor {name} has shape {tensor.shape}, LPIPS on VGG16 needs {shape}")
                if name.startswith("lin") and (tensor < 0).any():
                    raise UserError(f"{file}: tensor {name} has negative weights, which make no distance")
                weights[name] = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
    except (OSError, SafetensorError) as error:
        raise UserError(f"LPIPS weights cannot be read from {file}: {error}") from None
    return weights


def lpips_distance(
    weights: dict[str, Array], first: Float[Array, "B R R C"], second: Float[Array, "B R R C"]
) -> Float[Array, " B"]:
    """Sum over stages of the spatial mean of weighted squared differences of unit features; pixels in [-1, 1].

    Gray images are repeated to three channels.
    """
    total = jnp.zeros(first.shape[0])
    pairs = zip(_stage_features(weights, first), _stage_features(weights, second), strict=True)
    for stage, (a, b) in enumerate(pairs):
        difference = (_unit(a) - _unit(b)) ** 2
        linear = weights[f"lin{stage}.model.1.weight"].reshape(-1)
        total += jnp.einsum("bhwc,c->bhw", difference, linear).mean(axis=(1, 2))
    return total


def _stage_features(weights: dict[str, Array], pixels: Array) -> list[Array]:
    x = (jnp.broadcast_to(pixels, (*pixels.shape[:3], 3)) - jnp.array(SHIFT)) / jnp.array(SCALE)
    features: list[Array] = []
    for convolutions in CONVOLUTIONS:
        if features:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for index in convolutions:
            x = jax.lax.conv_general_dilated(
                x, weights[f"features.{index}.weight"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + weights[f"features.{index}.bias"])
        features.append(x)
    return features


def _unit(features: Array) -> Array:
    # The constant under the root keeps the gradient finite where all channels are zero.
    norm = jnp.sqrt(jnp.sum(features**2, axis=-1, keepdims=True) + 1e-20)
    return features / (norm + 1e-10)
