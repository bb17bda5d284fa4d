"""Bytes, seconds and counts as text."""

from __future__ import annotations


def gibibytes(size: float | int) -> str:
    """Formats bytes: `12.81 GiB`, or MiB and KiB where it is small."""
    for unit, scale, least in (("TiB", 2**40, 1.0), ("GiB", 2**30, 0.1), ("MiB", 2**20, 0.1)):
        if size >= least * scale:
            return f"{size / scale:,.2f} {unit}" if size < 100 * scale else f"{size / scale:,.0f} {unit}"
    return f"{size / 2**10:,.1f} KiB"


def duration(seconds: float) -> str:
    """Formats seconds: `1.93 s`, `43.1 ms`."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} us"


def amount(number: float | int) -> str:
    """Formats a count: `6.73 B`, `2.4 T`."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.4g} {unit}"
    return f"{number:.4g}"
