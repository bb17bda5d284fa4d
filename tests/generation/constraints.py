"""One row's state of decoding, as far as it decides which tokens are legal."""

import jax.numpy as jnp

from cm3leon_jax.generation.decode import DecodeState, PromptBatch


def constraints(
    plan: int,
    tokens_left: int,
    last: int,
    image_tokens_left: int,
    stop: int,
    spans_left: int,
    num_spans: int,
    image_length: int,
) -> tuple[PromptBatch, DecodeState]:
    """A batch of one prompt whose plan has `plan` next, and what was decoded before."""
    batch = dict.fromkeys(PromptBatch._fields) | {
        "plan": jnp.array([[plan]]),
        "plan_length": jnp.array([tokens_left]),
        "stop": jnp.array([stop]),
        "num_spans": jnp.array([num_spans]),
        "image_length": jnp.array([image_length]),
    }
    state = dict.fromkeys(DecodeState._fields) | {
        "step": jnp.array(0),
        "token": jnp.array([last]),
        "image_tokens_left": jnp.array([image_tokens_left]),
        "spans_left": jnp.array([spans_left]),
    }
    return PromptBatch(**batch), DecodeState(**state)
