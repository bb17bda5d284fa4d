"""Which parameters weight decay falls on: all but biases and the scales of norms, by their names."""

from __future__ import annotations

from typing import Any

import jax

from cm3leon_jax.models.sharding import parameter_name


def decays(parameters: Any) -> Any:
    """A tree of the same shape that says of each parameter whether it decays."""

    def is_decayed(path: tuple[Any, ...], leaf: Any) -> bool:
        return not any(name.endswith(("bias", "scale")) for name in parameter_name(path).split("."))

    return jax.tree_util.tree_map_with_path(is_decayed, parameters)
