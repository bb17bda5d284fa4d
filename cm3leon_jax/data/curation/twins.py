"""Finds images that are the same, by hashes, and which of several documents with the same images are dropped."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Int64, UInt64

from cm3leon_jax.counter_random import mix
from cm3leon_jax.data.curation.perceptual_hash import distance

_BITS = 64


def near_pairs(hashes: UInt64[np.ndarray, "n"], max_distance: int) -> Int64[np.ndarray, "k 2"]:
    """The pairs of different positions whose hashes differ in at most so many bits, each once, the smaller first.

    Two such hashes agree in one of `max_distance + 1` bands of bits, so only those that agree in a band are compared:
    of n hashes about n^2 / 2^(64 / bands) pairs for each band.
    """
    bands = np.linspace(0, _BITS, max_distance + 2).astype(int)
    found = [np.zeros((0, 2), np.int64)]
    for start, stop in itertools.pairwise(bands):
        band = hashes >> np.uint64(start) & np.uint64((1 << int(stop - start)) - 1)
        order = np.argsort(band, kind="stable")
        band = band[order]
        # The pairs whose positions in that order differ by 1, 2, ..., as long as there are any of one band.
        step, first = 1, np.arange(len(order) - 1)
        while len(first := first[first + step < len(order)]) and len(first := first[band[first] == band[first + step]]):
            pair = np.stack([order[first], order[first + step]], axis=1)
            near = distance(hashes[pair[:, 0]], hashes[pair[:, 1]]) <= max_distance
            found.append(np.sort(pair[near], axis=1))
            step += 1
    return np.unique(np.concatenate(found), axis=0)


def classes(hashes: UInt64[np.ndarray, "n"], max_distance: int) -> Int64[np.ndarray, "n"]:
    """For each image the first that it counts as the same as: of those that are no such, one near enough."""
    unique, inverse = _in_order(hashes)
    leaders = np.arange(len(unique))
    # Ordered by the second, so that what is known of the first does not change any more.
    pairs = near_pairs(unique, max_distance) if max_distance else np.zeros((0, 2), np.int64)
    for first, second in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
        if leaders[first] == first and leaders[second] == second:
            leaders[second] = first
    return leaders[inverse]


def twins_of(
    hashes: UInt64[np.ndarray, "n"], others: UInt64[np.ndarray, "k"], max_distance: int
) -> Int64[np.ndarray, "n"]:
    """For each image the position of one of some others that it is the same as; -1 where it is like none of them."""
    unique, inverse = _in_order(np.concatenate([others, hashes]))
    first = np.full(len(unique), -1, np.int64)
    # The first of each comes last.
    first[inverse[: len(others)][::-1]] = np.arange(len(others))[::-1]
    twins = first.copy()
    if max_distance:
        pairs = near_pairs(unique, max_distance)
        for one, other in (pairs.T, pairs.T[::-1]):
            is_new = (twins[one] < 0) & (first[other] >= 0)
            twins[one[is_new]] = first[other[is_new]]
    return twins[inverse[len(others) :]]


def repeated(
    documents: Int64[np.ndarray, "n"], images: Int64[np.ndarray, "n"], texts: UInt64[np.ndarray, "n"] | None
) -> Int64[np.ndarray, "k 2"]:
    """The documents whose images, in their order, an earlier one has, and that one; their texts agree if given.

    Args:
      documents: the document of each image, ascending.
      images: the class of each image.
      texts: the hash of the document's text, for each image.
    """
    if not len(documents):
        return np.zeros((0, 2), np.int64)
    starts = np.flatnonzero(np.diff(documents, prepend=documents[0] - 1))
    lengths = np.diff(starts, append=len(documents))
    position = np.arange(len(documents)) - np.repeat(starts, lengths)
    keys = np.add.reduceat(mix(mix(images.astype(np.uint64)) + position.astype(np.uint64)), starts)
    if texts is not None:
        keys = mix(keys) + texts[starts]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    first = first[inverse.reshape(-1)]
    is_repeated = first != np.arange(len(starts))
    return np.stack([documents[starts][is_repeated], documents[starts][first[is_repeated]]], axis=1)


def _in_order(hashes: UInt64[np.ndarray, "n"]) -> tuple[UInt64[np.ndarray, "k"], Int64[np.ndarray, "n"]]:
    """The different hashes in the order of their first coming, and which of them each is."""
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return unique[order], rank[inverse.reshape(-1)]
