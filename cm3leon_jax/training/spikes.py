"""Skips steps, as if they had not been, whose loss or gradients are not finite, and those whose gradients spike.

The statistics that decide are part of the training state, so an interrupted run skips the same steps.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cm3leon_jax.training.config import RecoveryConfig

# Steps that the mean of gradient norms averages over; before so many, no norm counts as a spike.
WINDOW = 100

_Tree = TypeVar("_Tree")


class SpikeState(NamedTuple):
    """Statistics of the gradient norms so far."""

    # Running mean over the applied steps, and how many those are.
    mean_norm: Float[Array, ""]
    num_applied: Int[Array, ""]
    num_skipped: Int[Array, ""]
    # Since the last applied step.
    skipped_in_a_row: Int[Array, ""]

    @classmethod
    def initial(cls) -> SpikeState:
        """The state of a fresh run."""
        zero = jnp.zeros((), jnp.int32)
        return cls(jnp.zeros((), jnp.float32), zero, zero, zero)

    def should_apply(self, loss: Float[Array, ""], norm: Float[Array, ""], config: RecoveryConfig) -> Bool[Array, ""]:
        """Whether a step with this loss and gradient norm is applied."""
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        if not config.spike_factor:
            return finite
        return finite & ((norm <= config.spike_factor * self.mean_norm) | (self.num_applied < WINDOW))

    def update(self, norm: Float[Array, ""], apply: Bool[Array, ""]) -> SpikeState:
        """The state after one more step."""
        # A plain mean at first, so that the norms of the first steps do not linger.
        weight = 1.0 / jnp.minimum(self.num_applied + 1, WINDOW)
        mean = self.mean_norm + weight * (jnp.where(apply, norm, self.mean_norm) - self.mean_norm)
        applied = apply.astype(jnp.int32)
        return SpikeState(
            mean,
            self.num_applied + applied,
            self.num_skipped + 1 - applied,
            jnp.where(apply, 0, self.skipped_in_a_row + 1),
        )


def select(apply: Bool[Array, ""], new: _Tree, old: _Tree) -> _Tree:
    """The new tree where the step is applied, the old one where it is skipped."""
    return jax.tree.map(lambda one, other: jnp.where(apply, one, other), new, old)
