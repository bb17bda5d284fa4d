"""Packing: which documents share a row, from their lengths alone."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64


def best_fit_rows(lengths: Int64[np.ndarray, "n"], row_length: int) -> list[list[int]]:
    """Groups documents into rows of at most `row_length` tokens: best fit, longest first.

    Returns:
      The indices of the documents of each row.
    """
    rows: list[list[int]] = []
    # Rows that have exactly `space` tokens left; bit `space` of `spaces` says whether there are any.
    with_space: dict[int, list[int]] = {}
    spaces = 0
    order = np.argsort(-lengths, kind="stable")
    for document, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = with_space[space].pop()
            if not with_space[space]:
                spaces &= ~(1 << space)
        else:
            space, row = row_length, len(rows)
            rows.append([])
        rows[row].append(document)
        left = space - length
        with_space.setdefault(left, []).append(row)
        spaces |= 1 << left
    return rows


def concat_then_split_rows(lengths: Int64[np.ndarray, "n"], row_length: int) -> list[list[tuple[int, int, int]]]:
    """Cuts the concatenated documents into rows of exactly `row_length` tokens (the last may be shorter).

    Returns:
      The pieces (document, start, stop) of each row.
    """
    rows: list[list[tuple[int, int, int]]] = []
    left = 0
    for document, length in enumerate(lengths.tolist()):
        start = 0
        while start < length:
            if not left:
                rows.append([])
                left = row_length
            stop = min(length, start + left)
            rows[-1].append((document, start, stop))
            left -= stop - start
            start = stop
    return rows
