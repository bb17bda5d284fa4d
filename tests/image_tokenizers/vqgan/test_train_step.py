"""The parts of one step that a whole run would not tell apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.image_tokenizers.vqgan import losses, lpips, train_step
from cm3leon_jax.image_tokenizers.vqgan import model as vqgan
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig, VQGANTrainingConfig

CONFIG = VQGANConfig(
    resolution=16, in_channels=1, base_channels=4, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=2,
    latent_channels=4, embedding_dim=3, codebook_size=16,
)  # fmt: skip
TRAINING = VQGANTrainingConfig(
    num_steps=100,
    batch_size=4,
    peak_learning_rate=1e-3,
    warmup_steps=10,
    final_learning_rate_fraction=0.1,
    perceptual_weight=1.0,
    perceptual_weights_file="some.safetensors",
    discriminator_layers=1,
    discriminator_channels=4,
)
MODULES = train_step.VQGANModules(CONFIG, TRAINING)


def test_the_adaptive_weight_is_that_of_gradients_at_the_last_kernel() -> None:
    model = vqgan.abstract_vqgan(CONFIG)
    values = {name: jnp.asarray(value) for name, value in vqgan.initial_parameters(model, 0).items()}
    critic = {
        name: jnp.asarray(value)
        for name, value in vqgan.initial_parameters(MODULES.abstract_discriminator(), 0).items()
    }
    features = jax.random.normal(jax.random.key(0), (2, 16, 16, 4))
    target = jax.random.uniform(jax.random.key(1), (2, 16, 16, 1), minval=-1)

    def pixels_of(kernel: jax.Array) -> jax.Array:
        plain = jax.lax.conv_general_dilated(
            features, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return plain + values[train_step.LAST_BIAS]

    def similarity(pixels: jax.Array) -> jax.Array:
        return losses.reconstruction_loss(pixels, target)

    def generator(pixels: jax.Array) -> jax.Array:
        return losses.generator_loss(MODULES.score(critic, pixels))

    kernel = values[train_step.LAST_KERNEL]
    for loss in (similarity, generator):
        by_hand = jax.jit(jax.grad(lambda kernel, loss=loss: loss(pixels_of(kernel))))(kernel)
        at_pixels = jax.jit(jax.grad(loss))(pixels_of(kernel))
        found = train_step._last_kernel_gradient(model, values, features, at_pixels)
        assert np.linalg.norm(by_hand) > 0
        np.testing.assert_allclose(found, by_hand, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("adversarial", [False, True])
def test_a_step_keeps_every_shape_with_the_perceptual_loss(adversarial: bool) -> None:
    images = jax.ShapeDtypeStruct((4, 16, 16, 1), jnp.uint8)
    weights = {
        name: jax.ShapeDtypeStruct((3, 3, shape[1], shape[0]) if shape[-1] == 3 else shape, jnp.float32)
        for name, shape in lpips.expected_shapes().items()
    }
    state = train_step.initial_state(MODULES, jnp.zeros(images.shape, jnp.uint8))
    after, metrics = jax.eval_shape(
        lambda state, images, weights: train_step.train_step(MODULES, state, images, weights, adversarial),
        state, images, weights,
    )  # fmt: skip
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert ("adversarial_weight" in metrics) == adversarial
    assert all(value.shape == () for value in metrics.values())


def test_the_rate_warms_up_then_falls_to_its_share() -> None:
    # Adam's first updates have the size of the rate, whatever the gradient.
    optimizer = MODULES.optimizer
    value = {"x": jnp.ones(())}
    state = optimizer.init(value)
    sizes = []
    for _ in range(TRAINING.num_steps + 1):
        update, state = optimizer.update({"x": jnp.ones(())}, state, value)
        sizes.append(-float(update["x"]))
    assert sizes[0] == pytest.approx(1e-4, rel=1e-3)
    assert sizes[10] == pytest.approx(1e-3, rel=1e-3)
    assert sizes[55] == pytest.approx(0.55e-3, rel=1e-2)
    assert sizes[100] == pytest.approx(1e-4, rel=1e-2)
