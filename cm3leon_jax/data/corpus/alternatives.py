"""Documents of which an epoch takes one, such as an image with each of its captions.

    CORPUS/TASK/SPLIT/groups-00000.npy   int64 [documents]: a number of each document's group; -1: it has none

Documents of a group follow each other, also from one shard to the next. Shards without groups lack the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from cm3leon_jax import counter_random
from cm3leon_jax.data.corpus.array_files import open_array
from cm3leon_jax.errors import UserError


def groups_file(folder: Path, shard: int) -> Path:
    return folder / f"groups-{shard:05d}.npy"


def open_groups(
    folder: Path, shard: int, checksum: int, num_documents: int, fix: str
) -> Int64[np.ndarray, "documents"]:
    """The group of each document of a shard."""
    groups = np.asarray(open_array(groups_file(folder, shard), checksum, fix))
    if groups.shape != (num_documents,) or groups.dtype != np.int64:
        raise UserError(f"{groups_file(folder, shard)} does not fit its shard: {fix}")
    return groups


@dataclass(frozen=True)
class Alternatives:
    """Which documents of a split an epoch takes: one of each group, and all that have none."""

    # The first document of each group, or the one without; at the end, how many documents there are.
    starts: Int64[np.ndarray, "m"]

    @classmethod
    def joined(cls, shards: Sequence[Int64[np.ndarray, "_"]]) -> Alternatives:
        """Those of shards, one after the other."""
        groups = np.concatenate(shards)
        is_start = np.ones(len(groups), bool)
        is_start[1:] = (groups[1:] != groups[:-1]) | (groups[1:] < 0)
        return cls(np.append(np.flatnonzero(is_start), len(groups)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def _sizes(self) -> Int64[np.ndarray, "n"]:
        return np.diff(self.starts)

    def sample(self, number: Int64[np.ndarray, "k"], *key: int | np.ndarray) -> Int64[np.ndarray, "k"]:
        """The document that is taken of each of these groups, for a key."""
        taken = np.floor(counter_random.uniform(*key, number) * self._sizes[number]).astype(np.int64)
        return self.starts[number] + taken
