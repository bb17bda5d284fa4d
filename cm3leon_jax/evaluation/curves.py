"""Curves of logged numbers, for pages."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """A number by step: a line, or points alone."""

    label: str
    color: str
    points: Sequence[tuple[int, float]]
    is_line: bool = True


def logged(log: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """The steps at which a number was logged, each with its value; `log` are lines of metrics.jsonl."""
    return [(line["step"], line[name]) for line in log if line.get(name) is not None]


def plot(curves: Sequence[Curve], what: str, columns: int = 1) -> str:
    """Plots curves: an SVG, empty where none has a point.

    Args:
      what: the numbers and their unit.
      columns: of the legend.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        style: dict[str, Any] = (
            {"linewidth": 1.4} if curve.is_line else {"marker": "o", "linestyle": "none", "markersize": 4}
        )
        axes.plot(*zip(*curve.points, strict=True), color=curve.color, label=curve.label, **style)
    axes.set_xlabel("step")
    axes.set_ylabel(what)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, ncols=columns)
    buffer = io.StringIO()
    # Its element ids would be random.
    with rc_context({"svg.hashsalt": what}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
