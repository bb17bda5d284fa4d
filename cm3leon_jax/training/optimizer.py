"""The transformer's optimizer: AdamW, or Muon for the matrices of its layers, with clipping by the global norm."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from cm3leon_jax.models.sharding import name_of_array
from cm3leon_jax.models.weight_decay import decays
from cm3leon_jax.training.config import OptimizerConfig
from cm3leon_jax.training.schedules import learning_rate

# Root mean square of a Muon update in units of the learning rate: that of AdamW's, so that one rate fits both
# (arXiv 2502.16982, section 2.2).
_MUON_RMS = 0.2
# Input and output axes of the matrices of the stacked layers; heads are part of them.
_MATRICES = {
    "attention.query": MuonDimensionNumbers(1, (2, 3)),
    "attention.key": MuonDimensionNumbers(1, (2, 3)),
    "attention.value": MuonDimensionNumbers(1, (2, 3)),
    "attention.output": MuonDimensionNumbers((1, 2), 3),
    "feed_forward.gate": MuonDimensionNumbers(1, 2),
    "feed_forward.up": MuonDimensionNumbers(1, 2),
    "feed_forward.down": MuonDimensionNumbers(1, 2),
}


def optimizer(
    config: OptimizerConfig, num_steps: int, factors: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """The update rule; weight decay applies to every parameter but biases and the learned scales of norms.

    `factors` multiplies the updates at last (`RateFactors.scale`).
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        _RULES[config.algorithm](config, learning_rate(config, num_steps)),
        *([] if factors is None else [factors]),
    )


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate, b1=config.beta1, b2=config.beta2, eps=config.epsilon, weight_decay=config.weight_decay, mask=decays
    )


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon for matrices, AdamW for everything else, such as the embeddings."""
    matrices = optax.chain(
        scale_by_muon(beta=config.muon_momentum, weight_dimension_numbers=_axes),
        optax.stateless(lambda updates, _: jax.tree.map(_rescaled, updates, _axes(updates))),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    return optax.partition({"matrix": matrices, "other": _adamw(config, rate)}, _labels)


def _rescaled(update: Float[Array, "..."], axes: MuonDimensionNumbers) -> Float[Array, "..."]:
    """An orthogonal update with the root mean square `_MUON_RMS`."""
    sizes = [math.prod(update.shape[axis] for axis in np.atleast_1d(each)) for each in axes]
    return update * (_MUON_RMS * math.sqrt(max(sizes)))


def _labels(parameters: Any) -> Any:
    def label(path: tuple[Any, ...], _: Any) -> str:
        return "other" if _matrix_axes(path) is None else "matrix"

    return jax.tree_util.tree_map_with_path(label, parameters)


def _axes(parameters: Any) -> Any:
    """The axes of each matrix, in a tree of which everything else is masked."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _matrix_axes(path), parameters)


def _matrix_axes(path: tuple[Any, ...]) -> MuonDimensionNumbers | None:
    return _MATRICES.get(name_of_array(path).removeprefix("blocks."))


_RULES = {"adamw": _adamw, "muon": _muon}
