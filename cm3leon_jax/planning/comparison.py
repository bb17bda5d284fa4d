"""Plans side by side: configs, or one config on several pods, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cm3leon_jax.planning import costs, input_demand, report
from cm3leon_jax.planning.plan import PodPlan
from cm3leon_jax.planning.topology import Topology
from cm3leon_jax.planning.units import amount, duration, gibibytes

_WIDTH = 100


@dataclass(frozen=True)
class ComparedPlan:
    """One config on one pod: its plan, or why there is none."""

    file: str
    pod: Topology
    planned: PodPlan | None
    refusal: str = ""

    @property
    def fits(self) -> bool:
        return self.planned is not None and self.planned.compiled.memory.fits


def lines(compared: Sequence[ComparedPlan], rates: costs.Rates) -> list[str]:
    """Formats the plans as columns, named A, B and so on; as many next to each other as fit in a line."""
    names = [_letters(index) for index in range(len(compared))]
    text = [
        *(f"{name}  {one.file} on {report.describe(one.pod)}" for name, one in zip(names, compared, strict=True)),
        *(f"   {name} refused: {one.refusal}" for name, one in zip(names, compared, strict=True) if one.refusal),
    ]
    columns = [{"": name, **_cells(one, rates)} for name, one in zip(names, compared, strict=True)]
    rows = list(dict.fromkeys(row for column in columns for row in column))
    columns = [{row: column.get(row, "-") for row in rows} for column in columns]
    names_width = max(map(len, rows))
    for block in _blocks(columns, _WIDTH - 2 - names_width):
        widths = [max(map(len, column.values())) for column in block]
        text.append("")
        for row in rows:
            cells = "  ".join(f"{column[row]:<{width}}" for column, width in zip(block, widths, strict=True))
            text.append(f"  {row:<{names_width}}  {cells}".rstrip())
    return [*text, "", "Bounds are of published peaks; expected times are estimates, with their range."]


def _cells(one: ComparedPlan, rates: costs.Rates) -> dict[str, str]:
    """Formats the cells of one column by their rows; those of times only where it fits."""
    planned = one.planned
    if planned is None:
        return {"verdict": "refused"}
    memory, limit, config = planned.compiled.memory, one.pod.accelerator.hbm_bytes, planned.config
    needed = "more" if memory.total_bytes is None else gibibytes(memory.total_bytes)
    cells = {
        "verdict": "fits" if memory.fits else "DOES NOT FIT",
        "memory of a device": f"{needed} of {gibibytes(limit)}",
        "mesh": report.mesh_text(planned.compiled.placement.mesh),
        "remat, microbatches": f"{config.model.remat}, {config.train.num_microbatches}",
    }
    if not memory.fits:
        return cells
    estimate = planned.estimate
    least, days, most = planned.expected_days
    return cells | {
        "step, at least": duration(planned.times.step),
        "bound by": planned.times.bound_by,
        "step, expected": f"{duration(estimate.seconds)} ({estimate.least:.3g} to {estimate.most:.3g} s)",
        "most of it": report.largest_causes(estimate, most=1),
        "MFU, expected": f"{planned.expected_mfu:.1%}",
        "run, expected": f"{days:.1f} d ({least:.1f} to {most:.1f})",
        "chip-hours": amount(days * 24 * one.pod.num_chips),
        "input": input_demand.input_demand(planned).verdict,
        **costs.cells(planned, rates),
    }


def _blocks(columns: Sequence[dict[str, str]], most: int) -> Iterator[list[dict[str, str]]]:
    """Splits the columns into blocks that fit in so many characters, each of at least one."""
    block: list[dict[str, str]] = []
    width = 0
    for column in columns:
        own = 2 + max(map(len, column.values()))
        if block and width + own > most:
            yield block
            block, width = [], 0
        block.append(column)
        width += own
    yield block


def _letters(index: int) -> str:
    """Names a column: A to Z, then AA and so on."""
    before, last = divmod(index, 26)
    return (_letters(before - 1) if before else "") + chr(ord("A") + last)


def as_json(compared: Sequence[ComparedPlan], rates: costs.Rates) -> dict[str, Any]:
    """Collects all plans for programs, in the order of the table."""
    return {
        "plans": [
            report.as_json(one.file, one.planned, rates)
            if one.planned
            else {"config": one.file, "topology": one.pod.name, "refused": one.refusal}
            for one in compared
        ]
    }
