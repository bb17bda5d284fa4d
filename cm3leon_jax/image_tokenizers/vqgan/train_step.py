"""One step of VQGAN training, as a pure function of (state, images)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from cm3leon_jax.image_tokenizers.vqgan import codebook, losses
from cm3leon_jax.image_tokenizers.vqgan.codebook import CodebookStatistics
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig, VQGANTrainingConfig
from cm3leon_jax.image_tokenizers.vqgan.lpips import lpips_distance
from cm3leon_jax.image_tokenizers.vqgan.model import (
    VQGAN,
    abstract_vqgan,
    initial_parameters,
    straight_through,
    to_unit_range,
)
from cm3leon_jax.models.sharding import batch_sharding
from cm3leon_jax.named_parameters import bind
from cm3leon_jax.training.schedules import learning_rate

EMBEDDING = "quantize.embedding"
LAST_KERNEL = "decoder.conv_out.kernel"
LAST_BIAS = "decoder.conv_out.bias"

Parameters = dict[str, Array]
Metrics = dict[str, Array]


class VQGANState(NamedTuple):
    """All that a run needs to go on; the discriminator's parts are empty when there is none."""

    step: Int[Array, ""]
    parameters: Parameters
    optimizer: optax.OptState
    codebook: CodebookStatistics
    discriminator: Parameters
    discriminator_optimizer: optax.OptState


@dataclass(frozen=True)
class VQGANModules:
    """The optimizer and the discriminator that a config describes."""

    config: VQGANConfig
    training: VQGANTrainingConfig

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam, for the autoencoder and the discriminator."""
        training = self.training
        schedule = learning_rate(training, training.num_steps, skip_zero=True)
        return optax.adam(schedule, b1=training.beta1, b2=training.beta2)

    def abstract_discriminator(self) -> losses.PatchDiscriminator:
        """The discriminator with shapes in place of arrays."""
        config, training = self.config, self.training
        sizes = config.in_channels, training.discriminator_channels, training.discriminator_layers
        return nnx.eval_shape(
            lambda: losses.PatchDiscriminator(*sizes, config.resolution, config.norm_groups, nnx.Rngs(0))
        )

    def score(self, values: Parameters, pixels: Float[Array, "B R R C"]) -> Float[Array, "B P P 1"]:
        """The discriminator with parameters `values` on `pixels`."""
        return bind(self.abstract_discriminator(), values)(pixels)


def initial_state(modules: VQGANModules, images: UInt8[Array, "B R R C"]) -> VQGANState:
    """Random weights from the seed, and a codebook of encoder outputs of `images`, the first batch.

    A code that starts far from every latent is never chosen and never learns; one that starts on a latent is used.
    """
    config, seed = modules.config, modules.training.seed
    model = abstract_vqgan(config)
    values = {name: jnp.asarray(value) for name, value in initial_parameters(model, seed).items()}
    encode = jax.jit(lambda values, images: bind(model, values).encode(to_unit_range(images)))
    latents = encode(values, images).reshape(-1, config.embedding_dim)
    values[EMBEDDING] = codebook.sample_latents(latents, config.codebook_size, jax.random.key(seed))
    discriminator: Parameters = {}
    if modules.training.discriminator_weight > 0:
        fresh = initial_parameters(modules.abstract_discriminator(), seed)
        discriminator = {name: jnp.asarray(value) for name, value in fresh.items()}
    return VQGANState(
        step=jnp.zeros((), jnp.int32),
        parameters=values,
        optimizer=modules.optimizer.init(values),
        codebook=codebook.initial_statistics(values[EMBEDDING], latents.shape[0]),
        discriminator=discriminator,
        discriminator_optimizer=modules.optimizer.init(discriminator),
    )


@cache
def make_train_step(modules: VQGANModules, mesh: Mesh) -> Callable[..., tuple[VQGANState, Metrics]]:
    """`(state, images, lpips weights or None, adversarial=) -> (state, metrics)`, jitted; the state is donated.

    Images are split over the mesh, everything else is on every device.
    """
    replicated, split = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)
    return jax.jit(
        partial(train_step, modules),
        in_shardings=(replicated, split, replicated),
        out_shardings=replicated,
        static_argnums=3,
        donate_argnums=0,
    )


def train_step(
    modules: VQGANModules,
    state: VQGANState,
    images: UInt8[Array, "B R R C"],
    lpips_weights: dict[str, Array] | None,
    adversarial: bool,
) -> tuple[VQGANState, Metrics]:
    """Autoencoder, codebook, and with `adversarial` the discriminator, each one step on the same images."""
    training = modules.training
    model = abstract_vqgan(modules.config)
    target = to_unit_range(images)

    def forward(values: Parameters) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        vqgan = bind(model, values)
        latents = vqgan.encode(target)
        codes = vqgan.quantize.nearest(latents)
        vectors = vqgan.quantize.lookup(codes)
        # With running means the codebook has no loss of its own.
        codebook_weight = training.codebook_weight if training.codebook_update == "gradient" else 0.0
        loss = losses.codebook_loss(latents, vectors, codebook_weight, training.commitment_weight)
        features = vqgan.features(straight_through(latents, vectors))
        return (vqgan.decoder.conv_out(features), loss), (latents, codes, features)

    def similarity_loss(pixels: Array) -> Array:
        loss = losses.reconstruction_loss(pixels, target)
        if lpips_weights is not None:
            loss += training.perceptual_weight * jnp.mean(lpips_distance(lpips_weights, pixels, target))
        return loss

    (pixels, quantization), vjp_fn, (latents, codes, features) = jax.vjp(forward, state.parameters, has_aux=True)
    similarity, pixel_gradient = jax.value_and_grad(similarity_loss)(pixels)
    metrics = {"reconstruction": similarity, "quantization": quantization, "loss": similarity + quantization}

    discriminator, discriminator_optimizer = state.discriminator, state.discriminator_optimizer
    if adversarial:
        generator, adversarial_gradient = jax.value_and_grad(
            lambda pixels: losses.generator_loss(modules.score(discriminator, pixels))
        )(pixels)
        # The last layer is linear, so both of its gradients follow from those at the pixels: the adaptive weight costs
        # two small products, and decoder and encoder still go backward once.
        to_kernel = partial(_last_kernel_gradient, model, state.parameters, features)
        weight = losses.adaptive_weight(to_kernel(pixel_gradient), to_kernel(adversarial_gradient))
        weight *= training.discriminator_weight
        pixel_gradient += weight * adversarial_gradient
        loss, gradient = jax.value_and_grad(
            lambda values: losses.discriminator_loss(modules.score(values, target), modules.score(values, pixels))
        )(discriminator)
        discriminator, discriminator_optimizer = _updated(modules, gradient, discriminator, discriminator_optimizer)
        metrics |= {"generator": generator, "discriminator": loss, "adversarial_weight": weight}
        metrics["loss"] += weight * generator

    (gradients,) = vjp_fn((pixel_gradient, jnp.ones_like(quantization)))
    values, optimizer = _updated(modules, gradients, state.parameters, state.optimizer)
    statistics, embedding = _update_codebook(
        modules, state, values[EMBEDDING], latents.reshape(-1, latents.shape[-1]), codes.reshape(-1)
    )
    counts = codebook.count_codes(codes.reshape(-1), modules.config.codebook_size)
    metrics |= {
        "psnr": -10 * jnp.log10(jnp.mean(((jnp.clip(pixels, -1, 1) - target) / 2) ** 2)),
        "codes_used": jnp.sum(counts > 0),
        "perplexity": codebook.perplexity(counts),
    }
    return VQGANState(
        step=state.step + 1,
        parameters=values | {EMBEDDING: embedding},
        optimizer=optimizer,
        codebook=statistics,
        discriminator=discriminator,
        discriminator_optimizer=discriminator_optimizer,
    ), metrics


def _update_codebook(
    modules: VQGANModules, state: VQGANState, embedding: Array, latents: Array, codes: Array
) -> tuple[CodebookStatistics, Array]:
    training = modules.training
    if training.codebook_update == "ema":
        statistics, embedding = codebook.update_means(state.codebook, embedding, latents, codes, training.ema_decay)
    else:
        counts = codebook.count_codes(codes, modules.config.codebook_size)
        statistics = codebook.update_usage(state.codebook, counts, training.ema_decay)
    if not training.dead_code_every:
        return statistics, embedding
    step = state.step + 1
    key = jax.random.fold_in(jax.random.key(training.seed), step)
    return jax.lax.cond(
        step % training.dead_code_every == 0,
        lambda: codebook.revive_dead_codes(statistics, embedding, latents, training.dead_code_threshold, key),
        lambda: (statistics, embedding),
    )


def _last_kernel_gradient(model: VQGAN, values: Parameters, features: Array, pixel_gradient: Array) -> Array:
    last = {"kernel": values[LAST_KERNEL], "bias": values[LAST_BIAS]}
    _, vjp_fn = jax.vjp(
        lambda kernel: bind(model.decoder.conv_out, last | {"kernel": kernel})(features), last["kernel"]
    )
    return vjp_fn(pixel_gradient)[0]


def _updated(
    modules: VQGANModules, gradients: Parameters, values: Parameters, optimizer: optax.OptState
) -> tuple[Parameters, optax.OptState]:
    updates, optimizer = modules.optimizer.update(gradients, optimizer, values)
    return optax.apply_updates(values, updates), optimizer
