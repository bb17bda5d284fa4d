"""What chaos.py holds a run that was killed against: a run that was not, and the batches that the corpus says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from chaos_program import row_sums

from cm3leon_jax import config_file
from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.data.batches.row_plan import open_retrieval
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.vocabulary import Vocabulary

# What a run says of its time; all else must be the same.
TIMING = ("tokens_per_second", "data_wait_seconds", "step_seconds", "goodput", "seconds_", "mfu")
# Largest relative difference of a loss where sums were made in another order.
FLOAT_ERROR = 1e-3


@dataclass
class Comparison:
    """What was compared, and what was found to differ."""

    num_values: int = 0
    num_files: int = 0
    num_arrays: int = 0
    # Rows of batches, over all starts and processes; those of steps that had to be done again among them.
    num_rows: int = 0
    num_steps_taken: int = 0
    # Largest relative difference of a loss.
    difference: float = 0.0
    faults: list[str] = field(default_factory=list)


def compared(run: Path, reference: Path, config: Path, num_steps: int, same_bits: bool) -> Comparison:
    """Compares a run with a reference."""
    result = Comparison()
    _compare_corpora(run / "corpus", reference / "corpus", result)
    _compare_metrics(run, reference, num_steps, same_bits, result)
    _compare_checkpoints(run, reference, num_steps, same_bits, result)
    _check_rows(run / "rows", _rows_by_step(config, reference, num_steps), result)
    return result


def _compare_corpora(run: Path, reference: Path, result: Comparison) -> None:
    files, expected = (
        {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()} for folder in (run, reference)
    )
    result.num_files += len(expected)
    for name in sorted(files.keys() ^ expected.keys()):
        result.faults.append(f"prepare: {name} is {'too many' if name in files else 'missing'}")
    for name in files.keys() & expected.keys():
        if files[name].read_bytes() != expected[name].read_bytes():
            result.faults.append(f"prepare: {name} has other bytes")


def _compare_metrics(run: Path, reference: Path, num_steps: int, same_bits: bool, result: Comparison) -> None:
    lines, expected = ([_measured(line) for line in read_step_log(path / "metrics.jsonl")] for path in (run, reference))
    steps = [line["step"] for line in lines]
    if steps != list(range(1, num_steps + 1)):
        result.faults.append(f"metrics.jsonl: the steps are {steps}")
        return
    for line, wanted in zip(lines, expected, strict=True):
        result.num_values += len(wanted)
        if line.keys() != wanted.keys():
            result.faults.append(f"step {line['step']}: values {sorted(line.keys() ^ wanted.keys())} are not in both")
            continue
        difference = max(abs(line[name] - wanted[name]) / wanted[name] for name in wanted if "loss" in name)
        result.difference = max(result.difference, difference)
        if same_bits and line != wanted:
            others = {name: (line[name], wanted[name]) for name in wanted if line[name] != wanted[name]}
            result.faults.append(f"step {line['step']}: {others}")
        elif difference > FLOAT_ERROR:
            result.faults.append(f"step {line['step']}: a loss differs by {difference:.1e}")


def _measured(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.startswith(TIMING)}


def _compare_checkpoints(run: Path, reference: Path, num_steps: int, same_bits: bool, result: Comparison) -> None:
    left_over = [path.name for path in (run / "checkpoints").iterdir() if not path.name.isdecimal()]
    result.faults += [f"checkpoints: {name} is left over, or was damaged" for name in left_over]
    found = []
    for folder in (run, reference):
        with Checkpoints(folder / "checkpoints", keep=1, read_only=True) as checkpoints:
            if checkpoints.latest_step != num_steps:
                result.faults.append(f"checkpoints: the last of {folder.name} is {checkpoints.latest_step}")
                return
            sums = checkpoints.bit_sums(num_steps)
            arrays = {name: each.read().result() for name, each in checkpoints.lazy_parameters(num_steps).items()}
            found.append((sums, arrays))
    (sums, arrays), (expected_sums, expected) = found
    result.num_arrays += len(expected_sums)
    if sums["step"] != expected_sums["step"]:
        result.faults.append("checkpoints: the state has counted another number of steps")
    if not same_bits:
        return
    result.faults += [f"checkpoints: {name} has other bits" for name in sums if sums[name] != expected_sums[name]]
    for name, array in expected.items():
        if not np.array_equal(arrays[name], array):
            result.faults.append(f"checkpoints: the parameters {name} differ")


@cache
def _rows_by_step(config: Path, reference: Path, num_steps: int) -> dict[int, list[int]]:
    """The checksum of every row of every step, as the reference's corpus says."""
    settings = config_file.load(str(config), str(reference), {})
    vocabulary = Vocabulary.load(settings.vocabulary.path)
    corpus = PreparedCorpus.open(settings.corpus.path, vocabulary)
    split = settings.corpus.train_split
    retrieval = open_retrieval(corpus, settings.retrieval, split)
    source = BatchSource(corpus, vocabulary, settings.objective, settings.batch, split, retrieval=retrieval)
    return {step: row_sums(source[step - 1]) for step in range(1, num_steps + 1)}


def _check_rows(folder: Path, expected: dict[int, list[int]], result: Comparison) -> None:
    seen: dict[int, set[int]] = {step: set() for step in expected}
    for path in sorted(folder.iterdir()):
        before = None
        # A process that was killed leaves half a line.
        for line in map(json.loads, path.read_text().split("\n")[:-1]):
            step = line["step"]
            if before is not None and step != before + 1:
                result.faults.append(f"{path.name}: step {step} came after step {before}")
            before = step
            result.num_steps_taken += path.stem.endswith("-0")
            for row, value in line["rows"]:
                result.num_rows += 1
                seen[step].add(row)
                if expected[step][row] != value:
                    result.faults.append(f"{path.name}: row {row} of step {step} is not the corpus's")
    for step, rows in seen.items():
        if rows != set(range(len(expected[step]))):
            result.faults.append(f"step {step}: no process took the rows {set(range(len(expected[step]))) - rows}")
