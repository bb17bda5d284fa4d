"""Counts of what a source skips, by kind, with the first locations of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# Locations of each kind that a report shows, and locations that the manifest lists.
_NUM_SHOWN = 5
_NUM_LISTED = 1000
_LONGEST_LOCATION = 80


def printable(name: str) -> str:
    """A file name or a text of a file as it can be printed and written: other bytes and control characters escaped."""
    holds_bytes = all("\udc80" <= each <= "\udcff" for each in name if "\ud800" <= each <= "\udfff")
    text = name.encode("utf-8", "surrogateescape" if holds_bytes else "backslashreplace")
    decoded = text.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in decoded)


@dataclass
class Skipped:
    """What was passed over: how many of each kind, and where the first of them are."""

    by_kind: Counter[str] = field(default_factory=Counter)
    # Of all that, what would otherwise have been documents.
    num_documents: int = 0
    _locations: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, location: str, is_document: bool = True) -> None:
        self.by_kind[kind] += 1
        self.num_documents += is_document
        locations = self._locations.setdefault(kind, [])
        if len(locations) < _NUM_LISTED:
            locations.append(printable(location))

    def add_unwanted(self, reason: str, location: str) -> None:
        """Takes in what a `Curator` does not want, which is no fault."""
        kind, _, detail = reason.partition(":")
        self.add(kind, f"{location} ({detail.strip()})" if detail else location, is_document=False)

    def update(self, other: Skipped) -> None:
        """Takes in what was passed over elsewhere."""
        self.by_kind.update(other.by_kind)
        self.num_documents += other.num_documents
        for kind, locations in other._locations.items():
            self._locations[kind] = [*self._locations.get(kind, []), *locations][:_NUM_LISTED]

    def to_json(self) -> dict[str, Any]:
        """All of it, in a form of JSON."""
        return {"by_kind": self.by_kind, "num_documents": self.num_documents, "locations": self._locations}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Skipped:
        """What `to_json` gave."""
        return cls(Counter(stored["by_kind"]), stored["num_documents"], stored["locations"])

    def entry(self) -> dict[str, Any]:
        """What a manifest says of it."""
        listed = [{"where": where, "reason": kind} for kind, found in self._locations.items() for where in found]
        return {
            "total": self.by_kind.total(),
            "by_reason": dict(sorted(self.by_kind.items())),
            "first": listed[:_NUM_LISTED],
        }

    def lines(self, num_shown: int = _NUM_SHOWN) -> list[str]:
        """A line for each kind, the most frequent first."""
        return [self._line(kind, count, num_shown) for kind, count in self.by_kind.most_common()]

    def in_one_line(self, longest: int = 1000) -> str:
        """All kinds in one line, with as many locations of each as it has room for."""
        for num_shown in range(_NUM_SHOWN, -1, -1):
            text = "; ".join(self.lines(num_shown))
            if len(text) <= longest:
                break
        return text

    def _line(self, kind: str, count: int, num_shown: int) -> str:
        shown = [_shortened(location) for location in self._locations[kind][:num_shown]]
        more = ["..."] if count > len(shown) > 0 else []
        return f"{count:,} x {kind}" + (f": {', '.join([*shown, *more])}" if shown else "")


def _shortened(location: str) -> str:
    if len(location) <= _LONGEST_LOCATION:
        return location
    return f"{location[:30]}...{location[-(_LONGEST_LOCATION - 33) :]}"
