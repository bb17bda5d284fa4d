"""FLOPs by formula, beside what XLA counts in the compiled step."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from cm3leon_jax.image_tokenizers.vqgan import flops
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig, VQGANTrainingConfig
from cm3leon_jax.image_tokenizers.vqgan.lpips import expected_shapes
from cm3leon_jax.image_tokenizers.vqgan.model import abstract_vqgan
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import _encode
from cm3leon_jax.image_tokenizers.vqgan.train_step import VQGANModules, initial_state, train_step
from cm3leon_jax.named_parameters import parameters

TRAINING = VQGANTrainingConfig(
    num_steps=10, batch_size=2, discriminator_start=4, discriminator_channels=32, dead_code_every=0
)
CONFIG = VQGANConfig(
    resolution=32,
    base_channels=64,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(16,),
    latent_channels=64,
    embedding_dim=64,
    codebook_size=256,
    training=TRAINING,
)


def lowered_step(config, adversarial):
    modules, training = VQGANModules(config, config.training), config.training
    images = jax.ShapeDtypeStruct((2, config.resolution, config.resolution, 3), np.uint8)
    lpips = None
    if training.perceptual_weight:
        kernels = {name: shape for name, shape in expected_shapes().items() if len(shape) == 4}
        shapes = expected_shapes() | {name: (*shape[2:], shape[1], shape[0]) for name, shape in kernels.items()}
        lpips = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    state = jax.eval_shape(partial(initial_state, modules), images)
    return jax.jit(partial(train_step, modules), static_argnums=3).lower(state, images, lpips, adversarial)


@pytest.mark.slow
def test_a_compiled_step_with_the_discriminator():
    found = lowered_step(CONFIG, adversarial=True).compile().cost_analysis()["flops"]
    assert 2 * (flops.step_flops(CONFIG) + flops.adversarial_flops(CONFIG)) == pytest.approx(found, rel=0.04)


@pytest.mark.slow
def test_what_the_discriminator_adds():
    # Before compilation, where nothing that is computed twice is shared: the scores of the reconstruction are.
    wide = replace(CONFIG, training=replace(TRAINING, discriminator_channels=64))
    with_it, without = (lowered_step(wide, adversarial).cost_analysis()["flops"] for adversarial in (True, False))
    shared = sum(flops._discriminator_layers(wide))
    assert 2 * (flops.adversarial_flops(wide) + shared) == pytest.approx(with_it - without, rel=0.06)


def test_perceptual_loss_patches_and_running_means():
    training = replace(TRAINING, codebook_update="ema", perceptual_weight=1.0, perceptual_weights_file="lpips")
    config = replace(CONFIG, encoder="patch", mid_block=False, training=training)
    found = lowered_step(config, adversarial=False).cost_analysis()["flops"]
    assert 2 * flops.step_flops(config) == pytest.approx(found, rel=0.04)


@pytest.mark.parametrize("encoder", ["convolutional", "patch"])
def test_encoding_an_image(encoder):
    config = replace(CONFIG, encoder=encoder)
    weights = {
        name: jax.ShapeDtypeStruct(value.shape, np.float32)
        for name, value in parameters(abstract_vqgan(config)).items()
    }
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.uint8)
    found = _encode.lower(config, weights, images).cost_analysis()["flops"]
    assert 2 * flops.vqgan_flops(config)[0] == pytest.approx(found, rel=0.06)


def test_a_training_has_the_discriminator_in_its_last_steps():
    _, whole = flops.vqgan_flops(CONFIG)
    assert whole == pytest.approx(2 * (10 * flops.step_flops(CONFIG) + 6 * flops.adversarial_flops(CONFIG)))
    without = replace(CONFIG, training=replace(TRAINING, discriminator_weight=0.0))
    assert flops.vqgan_flops(without)[1] == pytest.approx(20 * flops.step_flops(CONFIG))
