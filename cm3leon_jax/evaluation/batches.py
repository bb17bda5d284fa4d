"""Work on many items, in batches that the processes of a run share; all processes get all results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32

from cm3leon_jax.distributed import all_processes
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.context import stage

T = TypeVar("T")


def item_values(function: Callable[[slice], Sequence[T]], num: int, batch_size: int, what: str) -> list[T]:
    """What `function` returns for each item.

    Args:
      function: takes the indices of a batch; its values are as JSON has them.
      num: of all items.
      what: is computed, for messages.

    Raises:
      UserError: on every process, if `function` raises one on any.
    """
    batches = _gathered_values([list(batch) for batch in own_batches(function, num, batch_size, what)])
    of_batch = (batches[number % len(batches)][number // len(batches)] for number in range(-(-num // batch_size)))
    return [value for batch in of_batch for value in batch]


def rows(
    function: Callable[[slice], Float32[np.ndarray, "B F"]], num: int, batch_size: int, what: str
) -> Float32[np.ndarray, "n F"]:
    """The same for arrays, of which each batch has `batch_size` rows, the last one filled up.

    Raises:
      UserError: on every process, if `function` raises one on any.
    """
    own = np.stack(own_batches(function, num, batch_size, what))
    return _gathered_rows(own, -(-num // batch_size)).reshape(-1, own.shape[-1])[:num]


def own_batches(function: Callable[[slice], T], num: int, batch_size: int, what: str) -> list[T]:
    """The results of the batches of this process: every so many-th, and at least one."""
    starts = range(0, num, batch_size)
    # So that every process knows the width of a row.
    own = starts[jax.process_index() :: jax.process_count()] or starts[:1]
    found, error = [], ""
    with stage(what, num, "done") as advance:
        for start in own:
            batch = slice(start, min(start + batch_size, num))
            try:
                found.append(function(batch))
            except UserError as refused:
                error = str(refused)
                break
            advance(min((batch.stop - start) * jax.process_count(), num - start))
    if not all_processes(not error):
        raise UserError(error or f"{what}: another process of the run cannot go on: see what it says")
    return found


def _gathered_values(own: list[Any]) -> list[list[Any]]:
    """The values of every process."""
    if jax.process_count() == 1:
        return [own]
    encoded = np.frombuffer(json.dumps(own).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.array(len(encoded))))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(encoded)] = encoded
    everyone = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(values[:length].tobytes()) for values, length in zip(everyone, lengths, strict=True)]


def _gathered_rows(own: Float32[np.ndarray, "b B F"], num_batches: int) -> Float32[np.ndarray, "N B F"]:
    """All batches in order, of which each process has its part."""
    if (count := jax.process_count()) == 1:
        return own
    padded = np.zeros((-(-num_batches // count), *own.shape[1:]), np.float32)
    padded[: len(own)] = own[: len(padded)]
    # [process, batch of the process, B, F]
    everyone = np.asarray(multihost_utils.process_allgather(padded))
    return everyone.swapaxes(0, 1).reshape(-1, *own.shape[1:])[:num_batches]
