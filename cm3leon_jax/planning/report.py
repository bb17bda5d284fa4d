"""A plan as text, with units and tables, and as JSON."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cm3leon_jax.models.flops import FLOP_RULE
from cm3leon_jax.planning import costs, input_demand, roofline, stages
from cm3leon_jax.planning.accelerator_types import accelerator_type
from cm3leon_jax.planning.collectives import Collective, full_weight_reductions
from cm3leon_jax.planning.compile import Compiled
from cm3leon_jax.planning.expected import StepEstimate
from cm3leon_jax.planning.plan import PodPlan
from cm3leon_jax.planning.topology import Topology
from cm3leon_jax.planning.units import amount, duration, gibibytes

_WIDTH = 100
# Rows of the table of collectives below this fraction of the first are summed up in one line.
_SMALL_FRACTION = 0.005


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind, for one purpose, over the same axes, summed over a step."""

    kind: str
    over: str
    what: str
    element: str
    runs: int = 0
    sent_bytes: float = 0.0
    seconds: float = 0.0
    is_hidden: bool = False
    is_asynchronous: bool = False
    is_between_slices: bool = False


def mesh_text(mesh: dict[str, int]) -> str:
    """Formats a mesh: `fsdp 128 x tensor 4`."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"


def summed(collectives: Sequence[Collective], compiled: Compiled, topology: Topology) -> list[Traffic]:
    """Sums up the rows of the table of collectives, those that take longest first."""
    placement = compiled.placement
    rows: dict[Traffic, Traffic] = {}
    for collective in collectives:
        key = Traffic(
            kind=collective.kind,
            over=_over(collective, placement.mesh),
            what=purpose(collective, placement.weights, placement.mesh),
            element=collective.arrays[0][0] if collective.arrays else "",
            is_hidden=collective.is_hidden,
            is_asynchronous=collective.is_asynchronous,
            is_between_slices=collective.is_between_slices,
        )
        row = rows.get(key, key)
        rows[key] = dataclasses.replace(
            row,
            runs=row.runs + collective.runs,
            sent_bytes=row.sent_bytes + collective.runs * collective.sent_bytes,
            seconds=row.seconds + roofline.collective_seconds(collective, topology, placement.coordinates),
        )
    return sorted(rows.values(), key=lambda row: -row.seconds)


def _over(collective: Collective, mesh: dict[str, int]) -> str:
    name = " x ".join(f"{axis} {mesh[axis]}" for axis in collective.axes) or "devices"
    is_whole = math.prod(mesh[axis] for axis in collective.axes) == collective.group_size
    # Part of an axis: the group of a hierarchical collective.
    return name if is_whole else f"{collective.group_size} of {name}"


def purpose(collective: Collective, weights: dict[str, int], mesh: dict[str, int]) -> str:
    """Names what is sent: weights or gradients, recognized by their size, or the JAX operation."""
    gathered = collective.group_size if collective.kind == "all-gather" else 1
    sizes = {math.prod(shape) * gathered for _, shape in collective.arrays}
    # Between replicas or slices only a device's own shard is summed.
    unsharded = {size * mesh["fsdp"] for size in sizes} if "fsdp" not in collective.axes else set()
    names = [name for name, size in weights.items() if size in sizes | unsharded]
    if names:
        kind = "weights" if collective.kind == "all-gather" else "gradients"
        return f"{kind} of the layers" if any("." in name for name in names) else f"{kind} of {names[0]}"
    if collective.is_between_slices:
        return "shards of gradients"
    if collective.kind == "collective-permute" and "->" in collective.op_name:
        # A matmul that passes its gathered or scattered operand from neighbor to neighbor, shard by shard.
        return "shards, next to their matmuls"
    return _operation(collective.op_name)


def _operation(op_name: str) -> str:
    """Shortens the path of a JAX operation: `backward: BLD,DF->BLF`."""
    if not op_name:
        return "(unnamed)"
    if op_name.startswith("state["):
        return op_name.replace("\\'", "'").removesuffix(".value")
    part = "recomputed" if "rematted" in op_name else "backward" if "transpose(" in op_name else "forward"
    pieces = [piece for piece in op_name.split("/") if piece not in ("body", "closed_call", "checkpoint", "cond")]
    named = [piece for piece in pieces if "->" in piece]
    if not named:
        return f"{part}: {pieces[-1]}"
    return f"{part}: {named[-1].removeprefix('transpose(').removeprefix('jvp(').rstrip(')')}"


# How people call the causes of `expected.py` that have another name there.
_CAUSE_NAMES = {
    "updates": "logits and optimizer",
    "tensor_links": "links of the axis tensor",
    "network": "network between slices or hosts",
}


def largest_causes(estimate: StepEstimate, most: int) -> str:
    """Names what takes most of an expected step: `matmuls 61%, activations 21%`."""
    largest = sorted(estimate.seconds_by_cause.items(), key=lambda cause: -cause[1])[:most]
    return ", ".join(
        f"{_CAUSE_NAMES.get(name, name)} {seconds / estimate.seconds:.0%}" for name, seconds in largest if seconds
    )


def describe(pod: Topology) -> str:
    """Describes a pod with its accelerator type: `512 x v5p, torus of 8 x 8 x 8, 128 hosts (v5p-1024)`."""
    kind = accelerator_type(pod)
    return f"{pod.describe()} ({kind})" if kind else pod.describe()


def lines(file: str, planned: PodPlan, rates: costs.Rates) -> list[str]:
    """Formats the whole plan as text."""
    config, compiled, pod = planned.config, planned.compiled, planned.pod
    model, batch, parts = config.model, config.batch, config.train.num_microbatches
    size = f"{model.num_layers} layers of width {model.model_dim:,}, vocabulary {planned.vocabulary_size:,}"
    tokens = amount(batch.batch_size * batch.sequence_length)
    several = f"{parts} microbatches" if parts > 1 else "1 microbatch"
    kernel = roofline.attention_kernel(config, pod)
    text = [
        f"{file} on {describe(pod)}",
        "",
        _line("model", f"{amount(compiled.placement.num_parameters)} parameters: {size}"),
        _line("step", f"{batch.batch_size:,} x {batch.sequence_length:,} tokens = {tokens}"),
        _line("settings", f"{mesh_text(compiled.placement.mesh)}, remat {model.remat}, {several}, {kernel} attention"),
        _line(
            "compiled",
            f"in {compiled.lower_seconds:.0f} s of tracing and {compiled.compile_seconds:.0f} s of compiling",
        ),
        *_memory_table(compiled, pod),
    ]
    if not compiled.memory.fits:
        fix = "fix: more config.train.num_microbatches, a config.model.remat that keeps less, or --search"
        return [*text, "", fix]
    text += [
        *_collectives_table(planned.collectives, compiled, pod),
        *_time_table(planned),
        *costs.lines(planned, rates),
        *stages.lines(stages.find_stages(config, pod, rates.num_images)),
    ]
    return [*text, "", *textwrap.wrap(f"MFU counts {FLOP_RULE}.", _WIDTH)]


def _memory_table(compiled: Compiled, topology: Topology) -> list[str]:
    limit, memory = topology.accelerator.hbm_bytes, compiled.memory
    needed = "more" if memory.total_bytes is None else gibibytes(memory.total_bytes)
    fraction = f" ({memory.total_bytes / limit:.0%})" if memory.total_bytes else ""
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    device = "a chip" if topology.accelerator.devices_per_chip == 1 else "a core, half of a chip"
    text = [
        f"\nmemory of {device}, by its compiler: {verdict}, {needed} of {gibibytes(limit)}{fraction}",
        _line(gibibytes(compiled.placement.state_bytes), "parameters and optimizer, always there"),
    ]
    if memory.largest:
        text.append("  largest at the fullest moment:")
    for buffer in memory.largest:
        name = f"{buffer.array:<28} {_operation(buffer.op_name)}"[: _WIDTH - 16]
        text.append(_line(gibibytes(buffer.bytes), name))
    return text


def _collectives_table(collectives: Sequence[Collective], compiled: Compiled, topology: Topology) -> list[str]:
    rows = summed(collectives, compiled, topology)
    if not rows:
        return ["\ncollectives: none"]
    text = [
        "\ncollectives of a step, by the compiler: hidden by other work, or alone",
        f"  {'':<18} {'over':<20} {'what':<33} {'times':>6} {'sent':>10} {'at peak':>9}",
    ]
    small = [row for row in rows if row.seconds < _SMALL_FRACTION * rows[0].seconds]
    for row in rows[: len(rows) - len(small)]:
        text.append(
            f"  {row.kind:<18} {row.over[:20]:<20} {row.what[:33]:<33} {row.runs:>6,} {gibibytes(row.sent_bytes):>10} "
            f"{duration(row.seconds):>9} {'hidden' if row.is_hidden else 'alone'}"
        )
    if small:
        runs, sent = sum(row.runs for row in small), sum(row.sent_bytes for row in small)
        seconds = sum(row.seconds for row in small)
        text.append(f"  {'small ones':<18} {'':<54} {runs:>6,} {gibibytes(sent):>10} {duration(seconds):>9}")
    for collective, names in full_weight_reductions(collectives, compiled.placement.weights):
        text += _fault(collective, names, compiled.placement.mesh)
    return text


def _fault(collective: Collective, names: tuple[str, ...], mesh: dict[str, int]) -> list[str]:
    what, over = f"{gibibytes(collective.full_bytes)}, whole {' or '.join(names)}", _over(collective, mesh)
    if not collective.loops:
        return [f"  note: all-reduce over {over}, once per step, of {what}"]
    text = [
        f"  FAULT: all-reduce over {over}, {collective.runs:,} times per step, of {what};",
        "    a reduce-scatter would send half of that and keep a shard",
    ]
    if any("." in name for name in names):
        fix = "an fsdp axis smaller than the chips of a slice, by config.mesh.replica or config.mesh.tensor"
        text.append(f"    fix: {fix}")
    return text


def _time_table(planned: PodPlan) -> list[str]:
    config, done, times, chip = planned.config, planned.work, planned.times, planned.pod.accelerator
    masked = f", {done.masked_flops / done.flops:.0%} above the diagonal" if done.masked_flops else ""
    flops = (
        f"{done.flops:.3g} FLOPs at {chip.bfloat16_flops / 1e12:.0f} TFLOP/s, "
        f"{done.recomputed_flops / done.flops:.0%} recomputed{masked}"
    )
    traffic = f"{gibibytes(done.hbm_bytes)} at {chip.hbm_bytes_per_second / 1e12:.2f} TB/s, next to the matmuls"
    network = "between slices or hosts"
    terms = [
        ("matmuls", times.matmuls, flops),
        ("memory traffic", times.memory, traffic),
        ("links, hidden", times.hidden_links, "next to the matmuls"),
        ("links, exposed", times.exposed_links, "nothing runs meanwhile"),
        ("network, hidden", times.hidden_network, f"{network}, next to the matmuls"),
        ("network, exposed", times.exposed_network, f"{network}, nothing runs meanwhile"),
        ("optimizer", times.optimizer, f"{gibibytes(done.optimizer_bytes)} of memory traffic"),
    ]
    estimate = planned.estimate
    least, days, most = planned.expected_days
    bound_days = config.num_steps * times.step / 86400
    chip_hours = amount(days * 24 * planned.pod.num_chips)
    return [
        "\ntime of a step, at published peaks without any stall: a bound",
        *(f"  {name:<20} {duration(seconds):>9}   {note}" for name, seconds, note in terms if seconds > 0),
        f"  {'step':<20} {duration(times.step):>9}   at least; MFU at most {times.mfu:.1%}, bound by {times.bound_by}",
        "\nexpected, an estimate and no measurement",
        f"  {'step':<20} {duration(estimate.seconds):>9}   {duration(estimate.least)} to {duration(estimate.most)}; "
        f"MFU {planned.expected_mfu:.1%}, {estimate.seconds / times.step:.2f} times the bound",
        f"  {'most of it':<20} {'':>9}   {largest_causes(estimate, most=3)}",
        f"  {'run':<20} {days:>7.1f} d   {least:.1f} to {most:.1f} d, at least {bound_days:.1f}: {config.num_steps:,} "
        f"steps for {amount(config.train.num_tokens)} tokens",
        f"  {'chips':<20} {chip_hours:>9}   chip-hours",
        input_demand.line(planned),
        "",
        *textwrap.wrap(f"The estimate rests on {estimate.basis}.", _WIDTH),
    ]


def _line(name: str, text: str) -> str:
    return f"  {name:<12} {text}"


def as_json(file: str, planned: PodPlan, rates: costs.Rates) -> dict[str, Any]:
    """Collects the whole plan for programs: bytes, seconds and counts, per device where not said otherwise."""
    compiled, times = planned.compiled, planned.times
    seconds = {name: value for name, value in dataclasses.asdict(times).items() if name != "mfu"}
    return {
        "config": file,
        "topology": planned.pod.name,
        "accelerator_type": accelerator_type(planned.pod),
        "num_hosts": planned.pod.num_hosts,
        "num_chips": planned.pod.num_chips,
        "num_devices": planned.pod.num_devices,
        "mesh": compiled.placement.mesh,
        "remat": planned.config.model.remat,
        "microbatches": planned.config.train.num_microbatches,
        "compiler_options": compiled.placement.compiler_options,
        "num_parameters": compiled.placement.num_parameters,
        "memory": {
            "fits": compiled.memory.fits,
            "bytes": compiled.memory.total_bytes,
            "limit_bytes": planned.pod.accelerator.hbm_bytes,
            "state_bytes": compiled.placement.state_bytes,
            "largest": [dataclasses.asdict(buffer) for buffer in compiled.memory.largest],
        },
        "collectives": [dataclasses.asdict(row) for row in summed(planned.collectives, compiled, planned.pod)],
        "faults": [
            {"parameters": names, "bytes": fault.full_bytes, "axes": fault.axes, "runs": fault.runs}
            for fault, names in full_weight_reductions(planned.collectives, compiled.placement.weights)
            if fault.loops
        ],
        "model": {
            **dataclasses.asdict(planned.work),
            **{f"{name}_seconds": value for name, value in seconds.items()},
            "step_seconds": times.step,
            "mfu_bound": times.mfu,
            "bound_by": times.bound_by,
            "run_days_bound": planned.config.num_steps * times.step / 86400,
        },
        "expected": {
            "step_seconds": planned.estimate.seconds,
            "step_seconds_range": [planned.estimate.least, planned.estimate.most],
            "mfu": planned.expected_mfu,
            "seconds_by_cause": planned.estimate.seconds_by_cause,
            "run_days": planned.expected_days[1],
            "run_days_range": [planned.expected_days[0], planned.expected_days[2]],
            "basis": planned.estimate.basis,
        },
        "input": input_demand.as_json(planned),
        "run": costs.as_json(planned, rates),
        "stages": stages.as_json(stages.find_stages(planned.config, planned.pod, rates.num_images)),
        "lower_seconds": compiled.lower_seconds,
        "compile_seconds": compiled.compile_seconds,
    }


def short_json(planned: PodPlan) -> dict[str, Any]:
    """Collects what a search reports of each plan."""
    whole = as_json("", planned, costs.Rates())
    return {
        **{name: whole[name] for name in ("mesh", "remat", "microbatches")},
        **{name: whole["memory"][name] for name in ("fits", "bytes")},
        **{name: whole["model"][name] for name in ("step_seconds", "mfu_bound")},
        "expected": {name: whole["expected"][name] for name in ("step_seconds", "mfu")},
    }
