"""Expected time of a step, beside the bound: each cause at the rate that published runs reached.

The causes are those of `roofline.py`, at published peaks. How many times longer each takes is a constant, fitted on
measured steps of other projects by `benchmarks/calibrate_plan.py`; causes add up, so a constant of links of 0.6 says
that six tenths of the time at peak are not hidden, or that the links are slower. The runs were tuned by those who
published them, and read synthetic data.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from cm3leon_jax.accelerators import Accelerator
from cm3leon_jax.config import Config
from cm3leon_jax.planning.roofline import Work
from cm3leon_jax.planning.topology import Topology

_CONSTANTS = "calibration.json"


@dataclass(frozen=True)
class Causes:
    """Seconds of a step by cause, each at its published peak."""

    matmuls: float
    attention: float
    # One pass over what the matmuls and attention of the layers put out, through memory.
    activations: float
    # Logits and optimizer, through memory.
    updates: float
    # Inside a slice or an NVLink switch, those of activations along the mesh axis `tensor` apart; and between slices.
    links: float
    tensor_links: float
    network: float


CAUSES = tuple(field.name for field in dataclasses.fields(Causes))


@dataclass(frozen=True)
class Calibration:
    """Constants of a family of chips, and how far off they were on runs that were left out of the fit."""

    # How many times its time at peak a cause takes.
    constants: dict[str, float]
    # By which fraction a step is longer for each doubling of the number of slices.
    slowdown_per_doubling: float
    # Measured runs that were fitted, by kind of chip.
    num_runs: dict[str, int]
    # Mean and largest error of the step time with each model shape left out, and with each kind of chip left out, for
    # GPUs with each generation left out.
    shape_errors: tuple[float, float]
    chip_errors: tuple[float, float]


@dataclass(frozen=True)
class StepEstimate:
    """Expected seconds of a step, and the range in which they should be."""

    seconds: float
    least: float
    most: float
    # The expected seconds by cause; they add up to all.
    seconds_by_cause: dict[str, float]
    # What the estimate rests on, for people.
    basis: str


def causes(config: Config, done: Work, traffic: tuple[float, float, float], pod: Topology) -> Causes:
    """Splits a step into its causes.

    Args:
      traffic: seconds of all collectives at the peak of their links, hidden or not: inside a slice or NVLink switch
        without and with the mesh axis `tensor`, and between them.
    """
    model, chip = config.model, pod.accelerator
    heads = 2 * (model.num_heads + model.key_value_heads) * model.head_dim
    numbers = model.model_dim + (3 if model.gated else 2) * model.hidden_dim + heads
    tokens = config.batch.batch_size * config.batch.sequence_length / pod.num_devices
    return Causes(
        matmuls=(done.flops - done.attention_flops) / chip.bfloat16_flops,
        attention=done.attention_flops / chip.bfloat16_flops,
        activations=2.0 * numbers * model.num_layers * tokens / chip.hbm_bytes_per_second,
        updates=(done.logit_bytes + done.optimizer_bytes) / chip.hbm_bytes_per_second,
        links=traffic[0],
        tensor_links=traffic[1],
        network=traffic[2],
    )


def seconds_by_cause(
    found: Causes, constants: dict[str, float], num_slices: int, slowdown_per_doubling: float
) -> dict[str, float]:
    """Computes the expected seconds of a step by cause."""
    slowdown = 1 + slowdown_per_doubling * math.log2(num_slices)
    return {name: constants[name] * getattr(found, name) * slowdown for name in CAUSES}


def step_seconds(found: Causes, constants: dict[str, float], num_slices: int, slowdown_per_doubling: float) -> float:
    """Computes the expected seconds of a step."""
    return sum(seconds_by_cause(found, constants, num_slices, slowdown_per_doubling).values())


def family(chip: Accelerator) -> str:
    """Names the chips that share constants: all TPUs; A100; GPUs since H100."""
    return "tpu" if chip.is_tpu else "ampere" if chip.name == "a100" else "hopper"


@functools.cache
def calibration(name: str) -> Calibration:
    """Reads the constants of a family."""
    found: dict[str, Any] = json.loads((files(__package__) / _CONSTANTS).read_text())[name]
    for errors in ("shape_errors", "chip_errors"):
        found[errors] = tuple(found[errors])
    return Calibration(**found)


def estimate(found: Causes, pod: Topology) -> StepEstimate:
    """Estimates a step on `pod`; the range is wider for a kind of chip without published runs."""
    known, chip = calibration(family(pod.accelerator)), pod.accelerator.name
    by_cause = seconds_by_cause(found, known.constants, pod.num_slices, known.slowdown_per_doubling)
    seconds = sum(by_cause.values())
    total = sum(known.num_runs.values())
    own = known.num_runs.get(chip)
    mean, most = known.shape_errors if own else known.chip_errors
    what = "model shape" if own else "kind of chip"
    basis = (
        f"{total} published runs on {', '.join(sorted(known.num_runs))}, {own or 'none'} of them on {chip}, tuned by "
        f"those who published them, on synthetic data; with a {what} left out of the fit, off by {mean:.0%} on average "
        f"and {most:.0%} at most, which is the range"
    )
    return StepEstimate(seconds, seconds / (1 + most), seconds * (1 + most), by_cause, basis)


def published_runs() -> list[dict[str, Any]]:
    """Reads the published runs: shapes, settings, measured seconds of a step, and where each was published."""
    found: list[dict[str, Any]] = json.loads((files(__package__) / "published_runs.json").read_text())
    return found
