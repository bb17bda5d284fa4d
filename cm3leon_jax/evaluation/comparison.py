"""One page that holds the evaluations of several runs against each other."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cm3leon_jax import pages
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.curves import Curve, logged, plot
from cm3leon_jax.evaluation.estimates import Estimate, rows
from cm3leon_jax.evaluation.gallery import GALLERY, read_gallery
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.storage import mirror
from cm3leon_jax.storage.address import shown

# Curves: key in metrics.jsonl, title.
_CURVES = (("loss", "training loss"), ("eval_loss", "held-out loss"))
_COLORS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#444444")
_MOST_PROMPTS = 24


@dataclass(frozen=True)
class EvaluatedRun:
    """What is left of a run's training and evaluation in its folder."""

    name: str
    values: Mapping[str, float | None]
    # Hashes of the files of evaluation sets and judges, by name.
    hashes: Mapping[str, str]
    log: Sequence[Mapping[str, Any]]
    # (set, id) -> (prompt, images as PNG, text).
    gallery: Mapping[tuple[str, str], tuple[str, list[bytes], str]]

    @classmethod
    def read(cls, folder: Path) -> EvaluatedRun:
        """Reads the folder of a run.

        Raises:
          UserError: if it was not evaluated, or evaluation.json is damaged.
        """
        mirror.refresh(folder, whole=False)
        mirror.refresh(folder / GALLERY)
        file = folder / "evaluation.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            values = {name: value for name, value in content.items() if not isinstance(value, str)}
            if not all(value is None or isinstance(value, int | float) for value in values.values()):
                raise ValueError("a value is no number")
        except FileNotFoundError:
            raise UserError(
                f"{folder} has no evaluation.json: run `cm3leon evaluate --workdir={folder}` first"
            ) from None
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{file} cannot be read ({error}): evaluate the run again") from None
        gallery = {
            (entry["set"], entry["id"]): (entry["prompt"], images, entry.get("text", ""))
            for entry, images in read_gallery(folder / GALLERY)
        }
        hashes = {name: value for name, value in content.items() if isinstance(value, str)}
        return cls(shown(str(folder)), values, hashes, read_step_log(folder / "metrics.jsonl"), gallery)


@dataclass(frozen=True)
class Cell:
    """A metric of one run; `differs` where its interval lies apart from that of the first run."""

    value: float
    estimate: Estimate | None
    differs: bool


def table(runs: Sequence[EvaluatedRun]) -> list[tuple[str, list[Cell | None]]]:
    """The metrics that any run has, each with a cell per run."""
    of_run = [{name: (value, estimate) for name, value, estimate in rows(_finite(run.values))} for run in runs]
    names = dict.fromkeys(name for cells in of_run for name in cells)
    return [(name, _cells([cells.get(name) for cells in of_run])) for name in names]


def _cells(found: Sequence[tuple[float, Estimate | None] | None]) -> list[Cell | None]:
    first = found[0][1] if found and found[0] else None
    cells: list[Cell | None] = []
    for each in found:
        if each is None:
            cells.append(None)
            continue
        value, estimate = each
        apart = bool(first and estimate and (estimate.low > first.high or estimate.high < first.low))
        cells.append(Cell(value, estimate, apart))
    return cells


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def render_comparison(runs: Sequence[EvaluatedRun]) -> str:
    """Renders the page."""
    names = short_names([run.name for run in runs])
    hashes: dict[str, set[str]] = {}
    for name, value in (each for run in runs for each in run.hashes.items()):
        hashes.setdefault(name, set()).add(value)
    changed = [name.removesuffix("_sha256") for name, values in hashes.items() if len(values) > 1]
    prompts = dict.fromkeys(key for run in runs for key in run.gallery)
    shared = [key for key in prompts if sum(key in run.gallery for run in runs) > 1 or len(runs) == 1]
    samples = []
    for key in shared[:_MOST_PROMPTS]:
        of_runs = [run.gallery.get(key) for run in runs]
        prompt = next(found[0] for found in of_runs if found)
        samples.append(
            (
                prompt,
                key[0],
                [([pages.png_url(png) for png in found[1]], found[2]) if found else ([], "") for found in of_runs],
            )
        )
    return pages.render(
        "evaluation",
        "comparison.html.jinja",
        image=pages.ImageStyle.of(_resolution(runs)),
        names=names,
        colors=[_COLORS[index % len(_COLORS)] for index in range(len(runs))],
        table=[row for row in table(runs) if row[0] != "step"],
        steps=[run.values.get("step") for run in runs],
        changed=changed,
        curves=[svg for key, title in _CURVES if (svg := curves(runs, names, key, title))],
        samples=samples,
    )


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the folders that all of them share."""
    paths = [Path(name).resolve() for name in names]
    shared = Path(os.path.commonpath(paths))
    return [path.name if path == shared else str(path.relative_to(shared)) for path in paths]


def _resolution(runs: Sequence[EvaluatedRun]) -> int:
    for run in runs:
        for _, images, _ in run.gallery.values():
            for image in images:
                with Image.open(io.BytesIO(image)) as opened:
                    return opened.width
    return 64


def curves(runs: Sequence[EvaluatedRun], names: Sequence[str], key: str, title: str) -> str:
    """Plots one number of the step logs, a line per run: an SVG, empty where no run has it."""
    found = [
        Curve(name, _COLORS[index % len(_COLORS)], logged(run.log, key))
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    return plot(found, f"{title}, nats per token")
