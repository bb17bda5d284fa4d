"""The training loss: cross-entropy over every token but padding, and its parts by modality."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cm3leon_jax.vocabulary import Vocabulary


class LossSums(NamedTuple):
    """Summed cross-entropy in nats and number of tokens, of pictures' codes and of all other tokens."""

    text: Float[Array, ""]
    image: Float[Array, ""]
    num_text: Float[Array, ""]
    num_image: Float[Array, ""]

    @property
    def mean(self) -> Float[Array, ""]:
        """Nats a token, over all tokens."""
        return (self.text + self.image) / jnp.maximum(self.num_text + self.num_image, 1)

    def by_modality(self) -> dict[str, Float[Array, ""]]:
        """Nats a token: of all, of text and marks, of pictures."""
        return {
            "loss": self.mean,
            "loss_text": self.text / jnp.maximum(self.num_text, 1),
            "loss_image": self.image / jnp.maximum(self.num_image, 1),
        }


def cross_entropy(logits: Float[Array, "B L V"], targets: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """-log p(target), in nats."""
    # A masked sum, not a gather: a vocabulary that is split over devices stays where it is.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(is_target, logits, 0).sum(axis=-1)


def loss_sums(logits: Float[Array, "B L V"], targets: Int[Array, "B L"], vocabulary: Vocabulary) -> LossSums:
    """Sums over the whole (global) batch; padding counts nowhere."""
    first = vocabulary.first_image_code
    image = (targets >= first) & (targets < first + vocabulary.num_image_codes)
    text = (targets != vocabulary.pad) & ~image
    losses = cross_entropy(logits, targets)
    return LossSums(
        text=jnp.where(text, losses, 0).sum(),
        image=jnp.where(image, losses, 0).sum(),
        num_text=text.sum().astype(jnp.float32),
        num_image=image.sum().astype(jnp.float32),
    )
