"""The transformer's optimizer: AdamW with clipping by the global norm."""

from __future__ import annotations

import optax

from cm3leon_jax.models.weight_decay import decays
from cm3leon_jax.training.config import OptimizerConfig
from cm3leon_jax.training.schedules import learning_rate


def optimizer(
    config: OptimizerConfig, num_steps: int, factors: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """The update rule; weight decay applies to every parameter but biases and the learned scales of norms.

    `factors` multiplies the updates at last (`RateFactors.scale`).
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.adamw(
            learning_rate(config, num_steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
        *([] if factors is None else [factors]),
    )
