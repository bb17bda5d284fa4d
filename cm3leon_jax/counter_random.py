"""Random numbers as a pure function of a key, without state: SplitMix64's finalizer (Steele, Lea and Flood, 2014)."""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 6


@unique
class Stream(IntEnum):
    """What a random number decides; part of its key, so that no two decisions share one."""

    DOCUMENT_ORDER = 1
    BLOCK_ORDER = 2
    SPAN_COUNT = 11
    WHOLE_SEGMENTS = 12
    SPANS = 13
    MASKS = 21
    ROW_ORDER = 22
    NEIGHBORS = 23
    NEIGHBOR_ORDER = 31
    NEIGHBOR_COUNT = 32
    WORDING = 41
    DROPPED_CONDITION = 42
    TARGET_MASKS = 43
    ALTERNATIVE = 51


def mix(x: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    """A bijection of 64 bits that leaves no order in them."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash64(*key: int | np.ndarray) -> UInt64[np.ndarray, "..."]:
    """64 well-mixed bits for a key of integers; array parts of the key are broadcast against each other."""
    with np.errstate(over="ignore"):
        state: np.ndarray | np.uint64 = _GOLDEN
        for part in key:
            state = mix(state + _GOLDEN + np.asarray(part, np.int64).astype(np.uint64))
        return np.asarray(state)


def uniform(*key: int | np.ndarray) -> Float64[np.ndarray, "..."]:
    """A number in [0, 1) for a key."""
    return np.asarray((hash64(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def generator(*key: int) -> np.random.Generator:
    """A NumPy generator for a key."""
    return np.random.Generator(np.random.Philox(key=int(hash64(*key))))


def restart(rng: np.random.Generator, key: int | np.uint64) -> None:
    """Puts a generator of `generator` where it would begin with the key whose `hash64` is given.

    Making a new one costs ten times as much: it asks the operating system for randomness that a key then replaces.
    """
    zeros = (0, 0, 0, 0)
    rng.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": zeros, "key": (key, 0)},
        "buffer": zeros,
        "buffer_pos": len(zeros),
        "has_uint32": 0,
        "uinteger": 0,
    }


def permutation_at(index: Int64[np.ndarray, "n"], size: int, *key: int | np.ndarray) -> Int64[np.ndarray, "n"]:
    """Where a permutation of range(size), chosen by `key`, sends each index: a Feistel network with cycle walking.

    Array parts of the key choose the permutation index by index.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = [np.broadcast_to(hash64(*key, round_), index.shape) for round_ in range(_FEISTEL_ROUNDS)]
    value = index.astype(np.uint64)
    walking = np.arange(len(index))
    with np.errstate(over="ignore"):
        while len(walking):
            left, right = value[walking] >> np.uint64(half), value[walking] & mask
            for round_key in keys:
                left, right = right, left ^ (mix(right + round_key[walking]) & mask)
            value[walking] = (left << np.uint64(half)) | right
            # The network permutes a power of four; a value outside range(size) walks on until it falls inside.
            walking = walking[value[walking] >= size]
    return value.astype(np.int64)
