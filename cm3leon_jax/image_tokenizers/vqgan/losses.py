"""The VQGAN's losses: reconstruction, codebook and commitment, and the patch discriminator's hinge losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.vqgan.model import group_norm

LARGEST_ADAPTIVE_WEIGHT = 1e4


def reconstruction_loss(pixels: Float[Array, "B R R C"], target: Float[Array, "B R R C"]) -> Float[Array, ""]:
    """Mean absolute difference; pixels in [-1, 1]."""
    return jnp.mean(jnp.abs(pixels - target))


def codebook_loss(
    latents: Float[Array, "B G G E"], vectors: Float[Array, "B G G E"], codebook_weight: float, commitment_weight: float
) -> Float[Array, ""]:
    """Moves codes to latents, and latents to their codes (arXiv 1711.00937, equation 3)."""
    codes_to_latents = jnp.mean((vectors - jax.lax.stop_gradient(latents)) ** 2)
    latents_to_codes = jnp.mean((latents - jax.lax.stop_gradient(vectors)) ** 2)
    return codebook_weight * codes_to_latents + commitment_weight * latents_to_codes


def generator_loss(fake: Float[Array, "B P P 1"]) -> Float[Array, ""]:
    """Low where the discriminator takes reconstructions for real."""
    return -jnp.mean(fake)


def discriminator_loss(real: Float[Array, "B P P 1"], fake: Float[Array, "B P P 1"]) -> Float[Array, ""]:
    """Hinge: nothing is gained beyond 1 on images and -1 on reconstructions."""
    return 0.5 * (jnp.mean(nnx.relu(1 - real)) + jnp.mean(nnx.relu(1 + fake)))


def adaptive_weight(
    reconstruction_gradient: Float[Array, "h w i o"], adversarial_gradient: Float[Array, "h w i o"]
) -> Float[Array, ""]:
    """Balances the norms of both gradients at the decoder's last kernel (arXiv 2012.09841, equation 7)."""
    ratio = jnp.linalg.norm(reconstruction_gradient.ravel()) / (jnp.linalg.norm(adversarial_gradient.ravel()) + 1e-4)
    return jnp.clip(ratio, 0, LARGEST_ADAPTIVE_WEIGHT)


class PatchDiscriminator(nnx.Module):
    """Scores overlapping patches of an image as real or reconstructed: `num_layers` halvings, then two plain layers.

    The shape is that of the published NLayerDiscriminator, with group instead of batch normalization: a batch's
    statistics would have to be summed over all devices, and would make one image's score depend on the others. Raises a
    `UserError` if nothing is left of an image of this resolution after the layers.
    """

    def __init__(
        self, in_channels: int, channels: int, num_layers: int, resolution: int, norm_groups: int, rngs: nnx.Rngs
    ) -> None:
        if resolution // 2**num_layers < 3:
            raise UserError(
                f"config.image_tokenizer.training.discriminator_layers is {num_layers}: each halves the side, and of "
                f"{resolution} pixels at least 3 must remain; take fewer layers, or set discriminator_weight to 0"
            )
        widths = [channels * min(2**layer, 8) for layer in range(num_layers + 1)]
        strides = [2] * num_layers + [1]

        def layer(inputs: int, outputs: int, stride: int) -> nnx.Conv:
            return nnx.Conv(inputs, outputs, (4, 4), strides=stride, padding=1, rngs=rngs)

        inputs = [in_channels, *widths[:-1]]
        self.convs = nnx.List([layer(*sizes) for sizes in zip(inputs, widths, strides, strict=True)])
        # The first layer sees pixels, and is not normalized.
        self.norms = nnx.List([group_norm(width, norm_groups, rngs) for width in widths[1:]])
        self.conv_out = layer(widths[-1], 1, 1)

    def __call__(self, pixels: Float[Array, "B R R C"]) -> Float[Array, "B P P 1"]:
        """Pixels in [-1, 1] -> one score per patch, high for real."""
        x = nnx.leaky_relu(self.convs[0](pixels), 0.2)
        for convolution, norm in zip(self.convs[1:], self.norms, strict=True):
            x = nnx.leaky_relu(norm(convolution(x)), 0.2)
        return self.conv_out(x)
