"""AdamW with warm-up, linear decay and clipping by the global norm."""

from __future__ import annotations

import optax

from cm3leon_jax.models.weight_decay import decays
from cm3leon_jax.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then linear decay to `final_learning_rate_fraction` of it at the last step."""
    warmup = min(config.warmup_steps, num_steps)
    peak = config.peak_learning_rate
    decay = optax.linear_schedule(peak, peak * config.final_learning_rate_fraction, max(1, num_steps - warmup))
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, warmup)), decay], [warmup])


def optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """The update rule; weight decay falls on every parameter but biases and the learned scales of norms."""
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
    )
