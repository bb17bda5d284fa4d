"""Learning-rate schedules: a linear warm-up, the peak for as long as a config says, then a decay to the last step."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import optax


@runtime_checkable
class LearningRateConfig(Protocol):
    """The fields of a config that describe a schedule; every training has them under these names."""

    @property
    def peak_learning_rate(self) -> float: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def final_learning_rate_fraction(self) -> float: ...

    @property
    def decay_fraction(self) -> float: ...


def learning_rate(
    config: LearningRateConfig, num_steps: int, decay: Literal["linear", "cosine"] = "linear", skip_zero: bool = False
) -> optax.Schedule:
    """The rate by number of finished steps; the final one is reached at the last of `num_steps`.

    With `skip_zero` the warm-up's first rate is peak / warmup_steps rather than 0, which would waste a step.
    """
    peak, fraction = config.peak_learning_rate, config.final_learning_rate_fraction
    warmup = min(config.warmup_steps, num_steps)
    first = peak / max(1, warmup) if skip_zero else 0.0
    steps = max(1, num_steps - warmup)
    decay_steps = max(1, min(steps, round(num_steps * config.decay_fraction)))
    falling = (
        optax.linear_schedule(peak, peak * fraction, decay_steps)
        if decay == "linear"
        else optax.cosine_decay_schedule(peak, decay_steps, alpha=fraction)
    )
    schedules, ends = [optax.linear_schedule(first, peak, max(1, warmup))], [warmup]
    if decay_steps < steps:
        schedules.append(optax.constant_schedule(peak))
        ends.append(warmup + steps - decay_steps)
    return optax.join_schedules([*schedules, falling], ends)
