"""A batch of training sequences: one type from the loader to the model and the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, no_type_check

import jax
import numpy as np
from jaxtyping import Float, Int


# JAX and Grain rebuild a pytree around whatever a function returns for its leaves, so their types are not checked.
@no_type_check
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Sequences side by side: NumPy arrays on a host, global arrays on a mesh, or their shapes."""

    tokens: Int[Any, "B L"]
    # The next token of the same document; `<pad>` where there is none.
    targets: Int[Any, "B L"]
    # What each target counts in the loss, which is divided by their sum over the global batch: 0 for padding.
    weights: Float[Any, "B L"]
    # Position in the document, or in the sequence where attention crosses documents.
    positions: Int[Any, "B L"]
    # Index in the row of the first token that a token may attend to.
    document_start: Int[Any, "B L"]
    # 1 + the position in its image of the token that follows; 0 outside of images (objective.positions_in_image).
    image_positions: Int[Any, "B L"]

    @classmethod
    def padding(cls, rows: int, length: int, pad: int) -> Batch:
        """Rows of nothing but padding, which attends to itself alone."""
        shape = (rows, length)
        return cls(
            tokens=np.full(shape, pad, np.int32),
            targets=np.full(shape, pad, np.int32),
            weights=np.zeros(shape, np.float32),
            positions=np.zeros(shape, np.int32),
            document_start=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
            image_positions=np.zeros(shape, np.int32),
        )
