"""Which parameters a run trains, and how fast each: `config.optimizer.learning_rate_factors`.

A parameter whose factor is 0 is frozen: it has no gradient and no optimizer state. Of the embedding table and of an LM
head of its own, rows have factors by what their tokens are: `token_embedding.text`, `.image` and `.special`, and the
same of `output_embedding`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float32

from cm3leon_jax.errors import UserError
from cm3leon_jax.models.sharding import name_of_array, parameter_name
from cm3leon_jax.training.config import OptimizerConfig
from cm3leon_jax.vocabulary import Vocabulary

_TABLES = ("token_embedding", "output_embedding")

# Of a whole parameter, or of each row of a table.
Factor = float | Float32[np.ndarray, "V 1"]


class RateFactors:
    """The factor of the learning rate of every parameter of a model."""

    def __init__(self, config: OptimizerConfig, vocabulary: Vocabulary, parameters: nnx.State) -> None:
        """Looks up each of the `parameters`, which may be abstract.

        Raises a `UserError` if a pattern matches none of them, or nothing is left to train.
        """
        self._patterns = config.rate_patterns
        names = [name_of_array(path) for path, _ in jax.tree_util.tree_leaves_with_path(parameters)]
        unused = {pattern for pattern, _ in self._patterns}
        self._factors: dict[str, Factor] = {}
        for name in names:
            parts = [f"{name}.{kind}" for kind in ("text", "image", "special")] if name in _TABLES else []
            factors = [self._factor((part, name), unused) for part in parts or [name]]
            is_one = len(set(factors)) == 1
            self._factors[name] = factors[0] if is_one else _by_row(factors, vocabulary)
        if unused:
            raise UserError(
                f"config.optimizer.learning_rate_factors: {min(unused)} matches no parameter, or none that a pattern "
                f"before it does not; they are {', '.join(names)}"
            )
        if not any(map(self._is_trained, names)):
            raise UserError(
                "config.optimizer.learning_rate_factors: all parameters are frozen, which leaves none to train"
            )

    def split(self, parameters: nnx.State) -> tuple[nnx.State, nnx.State]:
        """The parameters that are trained, and those that are frozen."""
        trained, frozen = nnx.split_state(parameters, lambda path, _: self._is_trained(parameter_name(path)), ...)
        return trained, frozen

    def join(self, trained: nnx.State, frozen: nnx.State) -> nnx.State:
        """All parameters again."""
        return nnx.merge_state(trained, frozen)

    def of_trained_rows(self, gradients: nnx.State) -> nnx.State:
        """The gradients with zeros for rows that are frozen, so that these do not count for the norm."""
        return self._map(lambda factor, gradient: jnp.where(factor > 0, gradient, 0), gradients)

    def scale(self) -> optax.GradientTransformation | None:
        """Multiplies the updates by their factors; None where all are 1."""
        if not self._patterns:
            return None

        def scaled(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
            return update * self._factors[name_of_array(path)]

        return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))

    def with_frozen_rows(self, updated: nnx.State, before: nnx.State) -> nnx.State:
        """The updated parameters, with every bit of the rows that are frozen."""
        return self._map(lambda factor, new, old: jnp.where(factor > 0, new, old), updated, before)

    def _map(self, function: Callable[..., jax.Array], parameters: nnx.State, *others: nnx.State) -> nnx.State:
        """Applies a function to the factors and values of tables with frozen rows; others stay as they are."""

        def mapped(path: tuple[Any, ...], value: jax.Array, *values: jax.Array) -> jax.Array:
            factor = self._factors[name_of_array(path)]
            has_frozen_rows = not isinstance(factor, float) and not factor.all()
            return function(factor, value, *values) if has_frozen_rows else value

        return jax.tree_util.tree_map_with_path(mapped, parameters, *others)

    def _factor(self, names: tuple[str, ...], unused: set[str]) -> float:
        for pattern, factor in self._patterns:
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                unused.discard(pattern)
                return factor
        return 1.0

    def _is_trained(self, name: str) -> bool:
        return bool(np.any(self._factors[name]))


def _by_row(factors: Sequence[float], vocabulary: Vocabulary) -> Float32[np.ndarray, "V 1"]:
    """Factors of rows, given those of text tokens, image codes and special tokens."""
    ids = np.arange(vocabulary.size)
    text, image, special = factors
    rows = np.where(vocabulary.is_text(ids), text, np.where(vocabulary.is_image(ids), image, special))
    return rows.astype(np.float32)[:, None]
