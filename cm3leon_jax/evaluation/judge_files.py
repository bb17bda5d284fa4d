"""Files that judge, such as weights: options of metrics, of detectors and of color judges, and their hashes.

A judge that changed gives other numbers, so evaluation.json says which one it was.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cm3leon_jax.evaluation.sets.base import sha256
from cm3leon_jax.paths import LocalPath, OptionalPath
from cm3leon_jax.ranges import annotation
from cm3leon_jax.weights import WEIGHTS_FILE


@dataclass(frozen=True)
class Judges:
    """Says of an option that its file, or folder, decides what a metric measures."""


JudgePath = Annotated[LocalPath, Judges()]
OptionalJudgePath = Annotated[OptionalPath, Judges()]


def judge_hashes(metrics: Mapping[str, object]) -> dict[str, str]:
    """The SHA-256 of each judge's files, under METRIC_OPTION_sha256.

    A metric that is given judges as objects has them in an attribute `judges`, by the name of the option.
    """
    found = {}
    for name, metric in metrics.items():
        parts = {name: metric} | {f"{name}_{which}": judge for which, judge in getattr(metric, "judges", {}).items()}
        for prefix, part in parts.items():
            for option, path in _paths(part):
                found[f"{prefix}_{option}_sha256"] = sha256([str(file) for file in files_of(path)])
    return found


def files_of(path: Path) -> list[Path]:
    """The files that a path stands for: itself, the weights in the folder of an encoder, or all in another folder."""
    if not path.is_dir():
        return [path]
    if (path / WEIGHTS_FILE).is_file():
        return [path / WEIGHTS_FILE]
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))


def _paths(part: object) -> Iterator[tuple[str, Path]]:
    """The options of a dataclass that are judges, with their paths."""
    if not dataclasses.is_dataclass(part):
        return
    hints = typing.get_type_hints(type(part), include_extras=True)
    for field in dataclasses.fields(part):
        if annotation(hints[field.name], Judges) and (value := getattr(part, field.name)):
            yield field.name, Path(value)
