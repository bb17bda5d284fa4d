"""Compares two records of yardstick.py: which values are the same, to the last bit, and which are explained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Values by key and position, such as the name of a loss and the step.
Row = dict[str, dict[str, Any]]


@dataclass
class Explanations:
    """New names of what was renamed, and reasons for what differs."""

    renamed: dict[str, str] = field(default_factory=dict)
    explained: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def name(self, old: str, row: str = "") -> str:
        """The new name of a row, or of a key of a row: that of the whole, or of its parts."""
        for whole in ([f"{row}: {old}"] if row else []) + [old]:
            if whole in self.renamed:
                return self._look_up(whole)
        return re.sub(r"[^/.:]+", lambda part: self._look_up(part[0]), old)

    def _look_up(self, old: str) -> str:
        if old in self.renamed:
            self.used.add(old)
        return self.renamed.get(old, old)

    def reason(self, row: str, key: str) -> str | None:
        """Why a key of a row may differ, if it may."""
        for name in (f"{row}: {key}", row):
            if name in self.explained:
                self.used.add(name)
                return self.explained[name]
        return None

    @property
    def unused(self) -> list[str]:
        """What explained nothing."""
        return sorted((self.renamed.keys() | self.explained.keys()) - self.used)


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one row."""

    # Both names, where it has two.
    row: str
    num_values: int
    # "equal", "renamed" (equal under new names), "explained" or "differs".
    result: str
    first: str = ""
    # Of the numbers that differ.
    largest_relative: float | None = None
    reasons: tuple[str, ...] = ()


def compared(old: Mapping[str, Row], new: Mapping[str, Row], explanations: Explanations) -> list[Verdict]:
    """A verdict on every row of two records, in the order of the old one, rows that only the new one has behind."""
    verdicts = []
    names = {row: explanations.name(row) for row in old}
    for row, columns in old.items():
        verdicts.append(_verdict(row, names[row], columns, new.get(names[row], {}), explanations))
    for row in new:
        if row not in names.values():
            verdicts.append(_verdict(row, row, {}, new[row], explanations))
    return verdicts


def _verdict(row: str, new_row: str, old: Row, new: Row, explanations: Explanations) -> Verdict:
    named = {key: explanations.name(key, row) for key in old}
    if len(set(named.values())) < len(named):
        raise ValueError(f"{row}: two keys have one new name")
    expected = {named[key]: column for key, column in old.items()}
    # In the order of positions: what differs first is where the difference began.
    order = {position: None for columns in (expected, new) for column in columns.values() for position in column}
    rank = {position: number for number, position in enumerate(order)}
    differences = sorted(
        (rank[position], key, position)
        for key in expected.keys() | new.keys()
        for position in expected.get(key, {}).keys() | new.get(key, {}).keys()
        if _at(expected, key, position) != _at(new, key, position)
    )
    is_renamed = row != new_row or any(key != name for key, name in named.items())
    shown_row = row if row == new_row else f"{row} -> {new_row}"
    size = max(num_values(old), num_values(new))
    if not differences:
        return Verdict(shown_row, size, "renamed" if is_renamed else "equal")
    reasons = {key: explanations.reason(new_row, key) for _, key, _ in differences}
    unexplained = [each for each in differences if reasons[each[1]] is None]
    _, key, position = (unexplained or differences)[0]
    shown = (f"{_at(columns, key, position) or 'nothing':.40}" for columns in (expected, new))
    first = f"{key} at {position}: {' -> '.join(shown)} ({len(differences)} differ)"
    in_both = [(k, p) for _, k, p in differences if _at(expected, k, p) and _at(new, k, p)]
    relative = [_relative(expected[k][p], new[k][p]) for k, p in in_both]
    numbers = [each for each in relative if each is not None]
    return Verdict(
        shown_row,
        size,
        "differs" if unexplained else "explained",
        first if old and new else f"only in the {'old' if old else 'new'} record",
        max(numbers, default=None),
        tuple(dict.fromkeys(reason for reason in reasons.values() if reason)),
    )


def _at(row: Row, key: str, position: str) -> str | None:
    # What `repr` says of a float is all of its bits.
    return repr(row[key][position]) if position in row.get(key, {}) else None


def _relative(old: Any, new: Any) -> float | None:
    if not (isinstance(old, int | float) and isinstance(new, int | float)):
        return None
    return abs(new - old) / abs(old) if old else math.inf


def num_values(row: Row) -> int:
    """How many values a row has."""
    return sum(map(len, row.values()))
