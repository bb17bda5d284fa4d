"""Which documents share a row: planned from lengths alone, so that any row of any step can be found without reading."""

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
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
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


def stream_rows(lengths: Int64[np.ndarray, "n"], row_length: int) -> list[list[tuple[int, int, int]]]:
    """Cuts the documents, laid end to end, into rows of exactly `row_length` tokens (the last may be shorter).

    Returns:
      The pieces (document, start, stop) of each row.
    """
    ends = np.cumsum(lengths)
    rows = []
    for row_start in range(0, int(ends[-1]) if len(ends) else 0, row_length):
        row_stop = min(row_start + row_length, int(ends[-1]))
        document = int(np.searchsorted(ends, row_start, side="right"))
        pieces = []
        while row_start < row_stop:
            begin = int(ends[document] - lengths[document])
            stop = min(row_stop, int(ends[document]))
            if stop > row_start:
                pieces.append((document, row_start - begin, stop - begin))
            row_start = stop
            document += 1
        rows.append(pieces)
    return rows
