"""Which examples are held out: those that their publisher says, else a fraction by a hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath

import numpy as np
from jaxtyping import Int64, UInt64

# Names of splits, as Hugging Face's imagefolder knows them.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def hash_of(name: bytes) -> int:
    """64 bits of a name's hash."""
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big")


def split_in(name: str) -> str | None:
    """The split that a file's name says, or that of a folder it is in: "captions_train2017.json" is of "train"."""
    return next((SPLIT_NAMES[word] for word in _words(name) if word in SPLIT_NAMES), None)


def _words(name: str) -> Iterator[str]:
    for part in reversed(PurePath(name).parts):
        yield from re.findall("[a-z]+", part.lower())


def assign_splits(
    hashes: UInt64[np.ndarray, "n"], own: Sequence[str | None], held_out_fraction: float
) -> dict[str, Int64[np.ndarray, "k"]]:
    """Examples by split, in the order of their hashes, so that the first of a split are a fair sample.

    Args:
      own: the split that an example's publisher says; what all of them say holds if one is "train".
      held_out_fraction: how much else is "validation"; examples with equal hashes are on the same side.
    """
    found = sorted(set(own), key=str)
    if None in found or "train" not in found:
        return _held_out(hashes, np.arange(len(hashes)), held_out_fraction)
    names = np.array(own, object)
    splits = {split: _in_order(hashes, np.flatnonzero(names == split)) for split in found if split}
    return splits if "validation" in splits else splits | _held_out(hashes, splits["train"], held_out_fraction)


def _held_out(
    hashes: UInt64[np.ndarray, "n"], indices: Int64[np.ndarray, "k"], fraction: float
) -> dict[str, Int64[np.ndarray, "_"]]:
    ordered = _in_order(hashes, indices)
    positions = hashes[ordered]
    first_train = int(np.searchsorted(positions, np.uint64(int(fraction * 2**64)) if fraction else np.uint64(0)))
    if fraction > 0 and positions[0] != positions[-1]:
        first_train = max(first_train, int(np.searchsorted(positions, positions[0], "right")))
    return {"train": ordered[first_train:], "validation": ordered[:first_train]}


def _in_order(hashes: UInt64[np.ndarray, "n"], indices: Int64[np.ndarray, "k"]) -> Int64[np.ndarray, "k"]:
    return indices[np.argsort(hashes[indices], kind="stable")]
