"""Which steps are left out, so that one bad batch harms no run: those that are not finite, and those that leap.

A step that is left out changes neither parameters nor moments; it is a part of the training state, so that a run that
was interrupted leaves out the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cm3leon_jax.training.config import RecoveryConfig

# Steps over which the mean of gradient norms runs; before so many, nothing is a leap.
MEMORY = 100


class History(NamedTuple):
    """What is known of the steps so far."""

    # Mean norm of the gradients of the steps that were taken, and how many those are.
    mean_norm: Float[Array, ""]
    num_taken: Int[Array, ""]
    num_skipped: Int[Array, ""]
    # Steps left out since the last one that was taken.
    in_a_row: Int[Array, ""]

    @classmethod
    def empty(cls) -> History:
        """That of a fresh run."""
        none = jnp.zeros((), jnp.int32)
        return cls(jnp.zeros((), jnp.float32), none, none, none)

    def should_apply(self, loss: Float[Array, ""], norm: Float[Array, ""], config: RecoveryConfig) -> Bool[Array, ""]:
        """Whether a step with this loss and gradient norm is to be taken."""
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        if not config.spike_factor:
            return finite
        return finite & ((norm <= config.spike_factor * self.mean_norm) | (self.num_taken < MEMORY))

    def after(self, norm: Float[Array, ""], sound: Bool[Array, ""]) -> History:
        """What is known after one more step."""
        # A plain mean at first, so that the norms of the first steps do not linger.
        share = 1.0 / jnp.minimum(self.num_taken + 1, MEMORY)
        mean = self.mean_norm + share * (jnp.where(sound, norm, self.mean_norm) - self.mean_norm)
        taken = sound.astype(jnp.int32)
        return History(
            mean, self.num_taken + taken, self.num_skipped + 1 - taken, jnp.where(sound, 0, self.in_a_row + 1)
        )


def chosen(sound: Bool[Array, ""], new: object, old: object) -> object:
    """The new tree where the step is taken, the old one where it is left out."""
    return jax.tree.map(lambda one, other: jnp.where(sound, one, other), new, old)


@dataclass(frozen=True)
class DivergedRange:
    """Steps, first and last, that were left out in a row, and were too many."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"steps {self.first:,} to {self.last:,} had to be left out"
