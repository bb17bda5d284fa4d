"""Inception-v3 as the Frechet Inception Distance uses it: the weights of 2015-12-05, vectors of 2,048 numbers.

The network of Szegedy et al. (arXiv 1512.00567) with two traits of those weights: means over 3x3 pixels count no
padding, and the last block has a maximum instead of a mean. Modules have the names of the published state dict, a
pickle of PyTorch, which this makes a safetensors file:

    python -c "import torch; from safetensors.torch import save_file; save_file({k: v.contiguous() for k, v in
    torch.load('pt_inception-2015-12-05-6726825d.pth', weights_only=True).items()}, 'inception.safetensors')"

Feature maps are [B H W C], all parameters float32.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32
from safetensors import SafetensorError, safe_open

from cm3leon_jax.errors import UserError
from cm3leon_jax.named_parameters import bind, parameters

# Pixels on a side of an image, and numbers in its vector.
SIDE, NUM_FEATURES = 299, 2048

# Added to the variance in the batch normalization.
_EPSILON = 1e-3
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


class ConvNorm(nnx.Module):
    """A convolution with its batch normalization folded in, then ReLU."""

    def __init__(
        self, inputs: int, outputs: int, size: tuple[int, int], rngs: nnx.Rngs, stride: int = 1, padding: str = "SAME"
    ) -> None:
        # The weights are read: random ones would be traced for seconds.
        zeros = nnx.initializers.zeros_init()
        self.conv = nnx.Conv(inputs, outputs, size, stride, padding=padding, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C1"]) -> Float[Array, "B H2 W2 C2"]:
        """New width; the side changes with the stride or without padding."""
        return nnx.relu(self.conv(x))


class InceptionA(nnx.Module):
    """Branches of 1x1, 5x5 and twice 3x3 pixels."""

    def __init__(self, inputs: int, pooled: int, rngs: nnx.Rngs) -> None:
        self.branch1x1 = ConvNorm(inputs, 64, (1, 1), rngs)
        self.branch5x5_1 = ConvNorm(inputs, 48, (1, 1), rngs)
        self.branch5x5_2 = ConvNorm(48, 64, (5, 5), rngs)
        self.branch3x3dbl_1 = ConvNorm(inputs, 64, (1, 1), rngs)
        self.branch3x3dbl_2 = ConvNorm(64, 96, (3, 3), rngs)
        self.branch3x3dbl_3 = ConvNorm(96, 96, (3, 3), rngs)
        self.branch_pool = ConvNorm(inputs, pooled, (1, 1), rngs)

    def __call__(self, x: Float[Array, "B H W C1"]) -> Float[Array, "B H W C2"]:
        """Same side."""
        middle = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate([self.branch1x1(x), middle, double, self.branch_pool(_mean(x))], -1)


class InceptionB(nnx.Module):
    """From 35 to 17 pixels: branches of 3x3 and twice 3x3, and a maximum."""

    def __init__(self, inputs: int, rngs: nnx.Rngs) -> None:
        self.branch3x3 = ConvNorm(inputs, 384, (3, 3), rngs, 2, "VALID")
        self.branch3x3dbl_1 = ConvNorm(inputs, 64, (1, 1), rngs)
        self.branch3x3dbl_2 = ConvNorm(64, 96, (3, 3), rngs)
        self.branch3x3dbl_3 = ConvNorm(96, 96, (3, 3), rngs, 2, "VALID")

    def __call__(self, x: Float[Array, "B H W C1"]) -> Float[Array, "B H2 W2 C2"]:
        """Half the side."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate([self.branch3x3(x), double, _maximum(x, 2, "VALID")], -1)


class InceptionC(nnx.Module):
    """Branches of 1x1, 7x7 and twice 7x7 pixels, each 7x7 as a row and a column."""

    def __init__(self, inputs: int, inner: int, rngs: nnx.Rngs) -> None:
        self.branch1x1 = ConvNorm(inputs, 192, (1, 1), rngs)
        self.branch7x7_1 = ConvNorm(inputs, inner, (1, 1), rngs)
        self.branch7x7_2 = ConvNorm(inner, inner, (1, 7), rngs)
        self.branch7x7_3 = ConvNorm(inner, 192, (7, 1), rngs)
        self.branch7x7dbl_1 = ConvNorm(inputs, inner, (1, 1), rngs)
        self.branch7x7dbl_2 = ConvNorm(inner, inner, (7, 1), rngs)
        self.branch7x7dbl_3 = ConvNorm(inner, inner, (1, 7), rngs)
        self.branch7x7dbl_4 = ConvNorm(inner, inner, (7, 1), rngs)
        self.branch7x7dbl_5 = ConvNorm(inner, 192, (1, 7), rngs)
        self.branch_pool = ConvNorm(inputs, 192, (1, 1), rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Same shape."""
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return jnp.concatenate([self.branch1x1(x), single, double, self.branch_pool(_mean(x))], -1)


class InceptionD(nnx.Module):
    """From 17 to 8 pixels: branches of 3x3, and of 7x7 and 3x3, and a maximum."""

    def __init__(self, inputs: int, rngs: nnx.Rngs) -> None:
        self.branch3x3_1 = ConvNorm(inputs, 192, (1, 1), rngs)
        self.branch3x3_2 = ConvNorm(192, 320, (3, 3), rngs, 2, "VALID")
        self.branch7x7x3_1 = ConvNorm(inputs, 192, (1, 1), rngs)
        self.branch7x7x3_2 = ConvNorm(192, 192, (1, 7), rngs)
        self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1), rngs)
        self.branch7x7x3_4 = ConvNorm(192, 192, (3, 3), rngs, 2, "VALID")

    def __call__(self, x: Float[Array, "B H W C1"]) -> Float[Array, "B H2 W2 C2"]:
        """Half the side."""
        single = self.branch3x3_2(self.branch3x3_1(x))
        double = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return jnp.concatenate([single, double, _maximum(x, 2, "VALID")], -1)


class InceptionE(nnx.Module):
    """Branches of 1x1, 3x3 and twice 3x3 pixels, the last 3x3 as a row beside a column."""

    def __init__(self, inputs: int, rngs: nnx.Rngs, *, has_maximum: bool) -> None:
        self.branch1x1 = ConvNorm(inputs, 320, (1, 1), rngs)
        self.branch3x3_1 = ConvNorm(inputs, 384, (1, 1), rngs)
        self.branch3x3_2a = ConvNorm(384, 384, (1, 3), rngs)
        self.branch3x3_2b = ConvNorm(384, 384, (3, 1), rngs)
        self.branch3x3dbl_1 = ConvNorm(inputs, 448, (1, 1), rngs)
        self.branch3x3dbl_2 = ConvNorm(448, 384, (3, 3), rngs)
        self.branch3x3dbl_3a = ConvNorm(384, 384, (1, 3), rngs)
        self.branch3x3dbl_3b = ConvNorm(384, 384, (3, 1), rngs)
        self.branch_pool = ConvNorm(inputs, 192, (1, 1), rngs)
        self.has_maximum = has_maximum

    def __call__(self, x: Float[Array, "B H W C1"]) -> Float[Array, "B H W C2"]:
        """Same side."""
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = self.branch_pool(_maximum(x, 1, "SAME") if self.has_maximum else _mean(x))
        rows_and_columns = [
            *(self.branch3x3_2a(single), self.branch3x3_2b(single)),
            *(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)),
        ]
        return jnp.concatenate([self.branch1x1(x), *rows_and_columns, pooled], -1)


class InceptionV3(nnx.Module):
    """The network up to the mean of its last feature map, "pool3"."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, (3, 3), rngs, 2, "VALID")
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3), rngs, padding="VALID")
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, (3, 3), rngs)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, (1, 1), rngs)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3), rngs, padding="VALID")
        self.Mixed_5b = InceptionA(192, 32, rngs)
        self.Mixed_5c = InceptionA(256, 64, rngs)
        self.Mixed_5d = InceptionA(288, 64, rngs)
        self.Mixed_6a = InceptionB(288, rngs)
        self.Mixed_6b = InceptionC(768, 128, rngs)
        self.Mixed_6c = InceptionC(768, 160, rngs)
        self.Mixed_6d = InceptionC(768, 160, rngs)
        self.Mixed_6e = InceptionC(768, 192, rngs)
        self.Mixed_7a = InceptionD(768, rngs)
        self.Mixed_7b = InceptionE(1280, rngs, has_maximum=False)
        self.Mixed_7c = InceptionE(2048, rngs, has_maximum=True)

    def __call__(self, pixels: Float[Array, "B 299 299 3"]) -> Float[Array, "B 2048"]:
        """Vectors of RGB images; pixels are about -1 to 1."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_maximum(x, 2, "VALID")))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_maximum(x, 2, "VALID"))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(axis=(1, 2))


def _mean(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    return nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _maximum(x: Float[Array, "B H W C"], stride: int, padding: str) -> Float[Array, "B H2 W2 C"]:
    return nnx.max_pool(x, (3, 3), (stride, stride), padding)


@functools.cache
def abstract_inception() -> InceptionV3:
    """The network with shapes in place of arrays; nothing is allocated."""
    return nnx.eval_shape(lambda: InceptionV3(nnx.Rngs(0)))


@jax.jit
def inception_vectors(weights: dict[str, Array], pixels: Float[Array, "B 299 299 3"]) -> Float[Array, "B 2048"]:
    """Vectors by the weights that `load_inception` read."""
    return bind(abstract_inception(), weights)(pixels)


def expected_tensors() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that are read, as the published state dict has them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, kernel in parameters(abstract_inception()).items():
        if name.endswith(".conv.kernel"):
            height, width, inputs, outputs = kernel.shape
            layer = name.removesuffix(".conv.kernel")
            shapes[f"{layer}.conv.weight"] = (outputs, inputs, height, width)
            shapes |= {f"{layer}.bn.{part}": (outputs,) for part in _BATCH_NORM}
    return shapes


def load_inception(file: str | Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file of the published tensors; returns parameters of `InceptionV3` by name.

    Raises:
      UserError: if the file cannot be read, or is of another network: names the first tensor that is missing, or of
        another shape.
    """
    tensors = {}
    try:
        with safe_open(file, framework="numpy") as stored:
            present = set(stored.keys())
            for name, shape in expected_tensors().items():
                if name not in present:
                    raise UserError(f"{file} has no tensor {name}: it must hold the Inception-v3 of the FID{_FIX}")
                tensors[name] = stored.get_tensor(name).astype(np.float64)
                if (found := tensors[name].shape) != shape:
                    raise UserError(f"{file}: tensor {name} has shape {found}, the FID's Inception-v3 {shape}{_FIX}")
    except (OSError, SafetensorError) as error:
        raise UserError(f"Inception weights cannot be read from {file}: {error}{_FIX}") from None
    return folded(tensors)


_FIX = "; docs/evaluation.md has the line that makes the file"


def folded(tensors: dict[str, Float[np.ndarray, "..."]]) -> dict[str, Float32[np.ndarray, "..."]]:
    """Parameters of `InceptionV3`: each convolution takes over the scale and shift of its batch normalization."""
    values = {}
    for name, kernel in tensors.items():
        if name.endswith(".conv.weight"):
            layer = name.removesuffix(".conv.weight")
            gain, shift, mean, variance = (tensors[f"{layer}.bn.{part}"].astype(np.float64) for part in _BATCH_NORM)
            scale = gain / np.sqrt(variance + _EPSILON)
            values[f"{layer}.conv.kernel"] = (kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32)
            values[f"{layer}.conv.bias"] = (shift - mean * scale).astype(np.float32)
    return values
