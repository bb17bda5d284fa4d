"""The loss on documents that training never sees."""

from __future__ import annotations

import jax
from flax import nnx
from jax.sharding import Mesh

from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.training.loss import without_absent
from cm3leon_jax.training.step import TrainStep, on_mesh


def eval_loss(
    compiled: TrainStep, parameters: nnx.State, source: BatchSource, num_batches: int, mesh: Mesh
) -> dict[str, float]:
    """Nats a token over the first batches of a split, always the same ones: all, text and marks, images.

    A loss without targets is left out; their numbers say so.
    """
    parts = [compiled.evaluate(parameters, on_mesh(source[step], mesh)) for step in range(max(1, num_batches))]
    total = jax.tree.map(lambda *sums: sum(sums), *jax.device_get(parts))
    measured = without_absent({name: float(value) for name, value in total.by_modality().items()})
    return {f"eval_{name}": value for name, value in measured.items()}
