"""Which parameters decay: all but biases and the scales of norms, by their names."""

from __future__ import annotations

from typing import Any

import jax

from cm3leon_jax.models.sharding import parameter_name


def decays(parameters: Any) -> Any:
    """A tree of the same structure with a bool per parameter: whether weight decay applies to it."""

    def is_decayed(path: tuple[Any, ...], leaf: Any) -> bool:
        return not any(part.endswith(("bias", "scale")) for part in parameter_name(path).split("."))

    return jax.tree_util.tree_map_with_path(is_decayed, parameters)
