"""Fits the constants of `cm3leon plan`'s expected time on published runs, and says how far off they are.

    python benchmarks/calibrate_plan.py
    python benchmarks/calibrate_plan.py --write     # into cm3leon_jax/planning/calibration.json

The runs are in cm3leon_jax/planning/published_runs.json, each with its source. A constant says how many times its time
at published peaks a cause takes. Since the runs alone do not tell attention, activations and links well apart, each
constant is pulled toward what microbenchmarks of the parts say, as strongly as their spread allows. Errors are those of
steps whose model shape, or whose kind of chip, was left out of the fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.files import write_json
from cm3leon_jax.models.config import MeshConfig, ModelConfig
from cm3leon_jax.models.flops import attention_flops_per_token, layer_matrices
from cm3leon_jax.planning import expected, roofline, search
from cm3leon_jax.planning.topology import Topology, parse
from cm3leon_jax.training.config import TrainConfig

FILE = Path(__file__).parent.parent / "cm3leon_jax" / "planning" / "calibration.json"

# What microbenchmarks of the parts say, and how far they are apart: (constant, spread). Matmuls reach 0.78 to 0.92 of
# the peak (jax's Pallas matmul page for v5e, tpu-recipes for v6e and tpu7x, stas00/ml-engineering for GPUs); memory
# 0.83 to 0.87; links 0.8, of which a part is hidden, and more where matmuls are split to hide it. Attention reaches
# 0.45 to 0.6 of an H100 with FlashAttention 3 and 0.2 to 0.37 with 2 (arXiv 2407.08608), and none is published for
# TPUs. For passes of activations there is nothing but what a layer's norms, sums and activations must do.
PRIORS = {
    "matmuls": (1.2, 0.1),
    "attention": (2.0, 0.7),
    "activations": (12.0, 6.0),
    "updates": (1.2, 0.1),
    "links": (0.7, 0.5),
    "tensor_links": (0.4, 0.3),
    "network": (0.7, 0.5),
}
GPU_PRIORS = PRIORS | {"matmuls": (1.25, 0.15), "attention": (3.0, 1.5)}
# The relative error of a run that is as likely as one spread of each constant.
NOISE = 0.1


@dataclass(frozen=True)
class Run:
    """A published run with its causes."""

    id: str
    family: str
    chip: str
    model: str
    pod: Topology
    causes: expected.Causes
    bound: float
    measured: float

    @property
    def group(self) -> tuple[str, str]:
        return (self.chip, self.model)


def make_run(row: dict[str, Any]) -> Run:
    """Computes the causes of a published run with the formulas of the plan, and with its own rematerialization."""
    pod, mesh = parse(row["topology"]), row["mesh"]
    keeps_matmuls, keeps_all = row["recomputed_matmul_fraction"] == 0, not row["recomputes_attention"]
    names = ("num_layers", "model_dim", "num_heads", "num_key_value_heads", "head_size", "ffn_dim")
    model = ModelConfig(
        **{name: row[name] for name in (*names, "gated", "tied_embeddings")},
        remat="none" if keeps_matmuls and keeps_all else "save_dots" if keeps_matmuls else "full",
    )
    config = Config(
        batch=BatchConfig(
            batch_size=row["batch_size"], sequence_length=row["sequence_length"], packing="concat_then_split"
        ),
        model=model,
        mesh=MeshConfig(**mesh),
        train=TrainConfig(num_microbatches=row["num_microbatches"]),
    )
    chip, length = pod.accelerator, row["sequence_length"]
    tokens = row["batch_size"] * length / pod.num_devices
    attention = model.num_layers * attention_flops_per_token(model, length) * tokens
    matrices = model.num_layers * sum(layer_matrices(model).values()) * tokens
    # Without a fused kernel the masked half is computed as well, and no sums of a kernel again.
    passes = 3.5 if row["fused_attention"] else 6.0
    again = 0.0 if keeps_all else 1.0 if row["fused_attention"] else 2.0
    done = roofline.work(config, row["vocabulary_size"], mesh, has_kernel=row["fused_attention"])
    done = dataclasses.replace(
        done,
        recomputed_flops=2 * matrices * row["recomputed_matmul_fraction"] + attention * (passes + again - 3),
        masked_flops=0.0,
        attention_flops=attention * (passes + again),
    )
    links, tensor_links, network = search.traffic_bytes(config, mesh, row["vocabulary_size"], pod)
    link_rate = chip.interconnect_bytes_per_second
    rate = row.get("network_bytes_per_second", chip.network_bytes_per_second)
    found = expected.causes(config, done, (links / link_rate, tensor_links / link_rate, network / rate), pod)
    bound = found.matmuls + found.attention
    return Run(row["id"], expected.family(chip), chip.name, row["model"], pod, found, bound, row["step_seconds"])


def fit(runs: Sequence[Run], slowdown: float) -> dict[str, float]:
    """Fits the constants by least squares of relative errors; runs of one shape on one kind of chip count as one."""
    sizes = Counter(run.group for run in runs)
    rows, targets = [], []
    for run in runs:
        weight = 1 / math.sqrt(sizes[run.group])
        scale = weight * (1 + slowdown * math.log2(run.pod.num_slices)) / run.measured
        rows.append([scale * getattr(run.causes, name) for name in expected.CAUSES])
        targets.append(weight)
    priors = PRIORS if runs[0].family == "tpu" else GPU_PRIORS
    for index, name in enumerate(expected.CAUSES):
        value, spread = priors[name]
        rows.append([NOISE / spread if other == index else 0.0 for other in range(len(expected.CAUSES))])
        targets.append(NOISE * value / spread)
    found, _ = nnls(np.array(rows), np.array(targets))
    return dict(zip(expected.CAUSES, map(float, found), strict=True))


def fit_slowdown(runs: Sequence[Run]) -> float:
    """Fits what a doubling of slices costs, from runs that differ in nothing but the number of slices."""
    alone = {(*run.group, run.pod.sides): run.measured for run in runs if run.pod.num_slices == 1}
    ratios = [
        (math.log2(run.pod.num_slices), run.measured / alone[(*run.group, run.pod.sides)] - 1)
        for run in runs
        if run.pod.num_slices > 1 and (*run.group, run.pod.sides) in alone
    ]
    return sum(x * y for x, y in ratios) / sum(x * x for x, _ in ratios) if ratios else 0.0


def predict(runs: Sequence[Run], left_out: str) -> dict[str, float]:
    """Predicts each run with constants fitted without those of its `left_out`, an attribute; "" leaves none out."""
    predicted = {}
    keys = {getattr(run, left_out) if left_out else "" for run in runs}
    for key in keys:
        held = [run for run in runs if not left_out or getattr(run, left_out) == key]
        rest = [run for run in runs if not left_out or getattr(run, left_out) != key]
        slowdown = fit_slowdown(rest)
        constants = fit(rest, slowdown)
        for run in held:
            predicted[run.id] = expected.step_seconds(run.causes, constants, run.pod.num_slices, slowdown)
    return predicted


def errors(runs: Sequence[Run], predicted: dict[str, float]) -> tuple[float, float]:
    """Mean and largest error of the step time; in the mean, runs of one shape on one kind of chip count as one."""
    by_group: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        by_group.setdefault(run.group, []).append(abs(predicted[run.id] / run.measured - 1))
    means = [float(np.mean(values)) for values in by_group.values()]
    return float(np.mean(means)), max(max(values) for values in by_group.values())


def main() -> None:
    """Fits, prints tables in Markdown, and writes the constants if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the constants that `cm3leon plan` reads")
    arguments = parser.parse_args()
    everything = [make_run(row) for row in expected.published_runs()]
    gpus = [run for run in everything if run.family != "tpu"]
    results = {}
    for family in ("tpu", "hopper", "ampere"):
        runs = [run for run in everything if run.family == family]
        slowdown = fit_slowdown(runs)
        constants = fit(runs, slowdown)
        by_shape = predict(runs, "model")
        # A generation of GPUs is known from the other one.
        by_chip = predict(runs, "chip") if family == "tpu" else predict(gpus, "family")
        results[family] = {
            "constants": {name: round(value, 3) for name, value in constants.items()},
            "slowdown_per_doubling": round(slowdown, 4),
            "num_runs": dict(Counter(run.chip for run in runs)),
            "shape_errors": [round(value, 3) for value in errors(runs, by_shape)],
            "chip_errors": [round(value, 3) for value in errors(runs, by_chip)],
        }
        _print(family, runs, results[family], predict(runs, ""), by_shape, by_chip)
    if arguments.write:
        write_json(FILE, results)


def _print(
    family: str,
    runs: Sequence[Run],
    result: dict[str, Any],
    fitted: dict[str, float],
    by_shape: dict[str, float],
    by_chip: dict[str, float],
) -> None:
    print(
        f"\n{family}: {len(runs)} runs, constants {result['constants']}, {result['slowdown_per_doubling']} per doubling"
    )
    for name, predicted in (("fitted", fitted), ("shape left out", by_shape), ("chip left out", by_chip)):
        mean, largest = errors(runs, predicted)
        print(f"  {name}: mean error {mean:.1%}, largest {largest:.1%}")
    for chip in result["num_runs"]:
        own = [run for run in runs if run.chip == chip]
        shape, kind = errors(own, by_shape), errors(own, by_chip)
        print(f"  {chip}: shape left out {shape[0]:.1%}, {shape[1]:.1%}; chip left out {kind[0]:.1%}, {kind[1]:.1%}")
    print("\n| run | measured s | FLOPs at peak s | expected s | shape left out | chip left out |")
    print("| --- | --- | --- | --- | --- | --- |")
    for run in runs:
        off = [f"{predicted[run.id] / run.measured - 1:+.0%}" for predicted in (by_shape, by_chip)]
        print(f"| {run.id} | {run.measured:.2f} | {run.bound:.2f} | {fitted[run.id]:.2f} | {off[0]} | {off[1]} |")


if __name__ == "__main__":
    main()
