"""Loss values and gradients by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.vqgan import losses
from cm3leon_jax.image_tokenizers.vqgan import model as vqgan
from cm3leon_jax.named_parameters import bind


def test_hinge_losses() -> None:
    real, fake = jnp.array([2.0, 0.5]).reshape(2, 1, 1, 1), jnp.array([-3.0, 0.25]).reshape(2, 1, 1, 1)
    # (0 + 0.5) / 2 and (0 + 1.25) / 2, halved.
    assert losses.discriminator_loss(real, fake) == pytest.approx(0.5 * (0.25 + 0.625))
    assert losses.generator_loss(fake) == pytest.approx(1.375)


def test_codebook_loss_moves_codes_and_latents_by_their_own_weights() -> None:
    latents, vectors = jax.random.normal(jax.random.key(0), (2, 1, 2, 2, 3))
    to_latents, to_vectors = jax.grad(losses.codebook_loss, argnums=(0, 1))(latents, vectors, 2.0, 0.25)
    np.testing.assert_allclose(to_latents, 0.25 * 2 * (latents - vectors) / 12, rtol=1e-5)
    np.testing.assert_allclose(to_vectors, 2.0 * 2 * (vectors - latents) / 12, rtol=1e-5)


def test_adaptive_weight_is_a_ratio_of_norms_with_a_ceiling() -> None:
    reconstruction, adversarial = jnp.full((3, 3, 2, 1), 2.0), jnp.full((3, 3, 2, 1), -0.5)
    norm = np.sqrt(18)
    assert losses.adaptive_weight(reconstruction, adversarial) == pytest.approx(2 * norm / (0.5 * norm + 1e-4))
    assert losses.adaptive_weight(reconstruction, 0 * adversarial) == 1e4


def discriminator(resolution: int, num_layers: int) -> losses.PatchDiscriminator:
    return losses.PatchDiscriminator(1, 8, num_layers, resolution, 32, nnx.Rngs(0))


@pytest.mark.parametrize(("resolution", "num_layers", "patches"), [(256, 3, 30), (32, 2, 6), (8, 1, 2)])
def test_discriminator_scores_patches(resolution: int, num_layers: int, patches: int) -> None:
    pixels = jax.ShapeDtypeStruct((2, resolution, resolution, 1), jnp.float32)
    scores = nnx.eval_shape(lambda x: discriminator(resolution, num_layers)(x), pixels)
    assert scores.shape == (2, patches, patches, 1)


def test_a_score_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = nnx.eval_shape(lambda: discriminator(8, 1))
    model = bind(model, vqgan.initial_parameters(model, 0))
    pixels = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    score = jax.jit(lambda pixels: model(pixels)[0])
    np.testing.assert_allclose(score(pixels), score(pixels.at[1:].multiply(5.0)), rtol=1e-5, atol=1e-6)


def test_too_many_layers_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="discriminator_layers is 2"):
        discriminator(8, 2)
