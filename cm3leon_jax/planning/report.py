"""The plan as people read it: units, tables, faults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cm3leon_jax.config import Config
from cm3leon_jax.planning import roofline
from cm3leon_jax.planning.collectives import Collective, full_weight_reductions
from cm3leon_jax.planning.compile import Compiled
from cm3leon_jax.planning.memory import Buffer
from cm3leon_jax.planning.topology import Topology

_WIDTH = 100
# What sends less than this share of the most is summed in one line.
_SMALL_SHARE = 0.005


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind, of one purpose, over the same axes, summed over a step."""

    kind: str
    over: str
    what: str
    element: str
    runs: int
    sent_bytes: float
    seconds: float
    is_hidden: bool
    is_asynchronous: bool
    is_between_slices: bool


def gibibytes(size: float | int) -> str:
    """`12.81 GiB`, or MiB and KiB where it is small."""
    for unit, scale, least in (("TiB", 2**40, 1.0), ("GiB", 2**30, 0.1), ("MiB", 2**20, 0.1)):
        if size >= least * scale:
            return f"{size / scale:,.2f} {unit}" if size < 100 * scale else f"{size / scale:,.0f} {unit}"
    return f"{size / 2**10:,.1f} KiB"


def duration(seconds: float) -> str:
    """`1.93 s`, `43.1 ms`."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} us"


def amount(number: float | int) -> str:
    """`6.73 B`, `2.4 T`."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.4g} {unit}"
    return f"{number:.4g}"


def summed(collectives: Sequence[Collective], compiled: Compiled, topology: Topology) -> list[Traffic]:
    """Rows of the table of collectives, those that take longest first."""
    rows: dict[tuple[str, str, str, str, bool, bool, bool], tuple[int, float, float]] = {}
    for collective in collectives:
        key = (
            collective.kind,
            _over(collective, compiled.placement.mesh),
            purpose(collective, compiled.placement.weights, compiled.placement.mesh),
            collective.arrays[0][0] if collective.arrays else "",
            collective.is_hidden,
            collective.is_asynchronous,
            collective.is_between_slices,
        )
        runs, sent, seconds = rows.get(key, (0, 0.0, 0.0))
        rows[key] = (
            runs + collective.runs,
            sent + collective.runs * collective.sent_bytes,
            seconds + roofline.collective_seconds(collective, topology, compiled.placement.coordinates),
        )
    whole = [
        Traffic(kind, over, what, element, runs, sent, seconds, hidden, asynchronous, between)
        for (kind, over, what, element, hidden, asynchronous, between), (runs, sent, seconds) in rows.items()
    ]
    return sorted(whole, key=lambda row: -row.seconds)


def _over(collective: Collective, mesh: dict[str, int]) -> str:
    ways = math.prod(mesh[axis] for axis in collective.axes)
    name = " x ".join(f"{axis} {mesh[axis]}" for axis in collective.axes) or "devices"
    # Part of an axis: the group of a hierarchical collective.
    return name if ways == collective.group_size else f"{collective.group_size} of {name}"


def purpose(collective: Collective, weights: dict[str, int], mesh: dict[str, int]) -> str:
    """What is sent: weights or gradients, known by their size, or what the operation's name says."""
    whole = collective.group_size if collective.kind == "all-gather" else 1
    sizes = {math.prod(shape) * whole for _, shape in collective.arrays}
    # Between replicas or slices only a device's own share is summed.
    shares = {size * mesh["fsdp"] for size in sizes} if "fsdp" not in collective.axes else set()
    names = [name for name, size in weights.items() if size in sizes | shares]
    if not names and collective.is_between_slices:
        return "shares of gradients"
    if not names and collective.kind == "collective-permute" and "->" in collective.op_name:
        # A product that takes its gathered or scattered side from neighbor to neighbor, share by share.
        return "shares, beside their products"
    if not names:
        return _operation(collective.op_name)
    kind = "weights" if collective.kind == "all-gather" else "gradients"
    layers = [name for name in names if "." in name]
    return f"{kind} of the layers" if layers else f"{kind} of {names[0]}"


def _operation(op_name: str) -> str:
    """A person's name of a JAX operation: `backward: BLD,DF->BLF`."""
    if not op_name:
        return "(unnamed)"
    if op_name.startswith("state["):
        return op_name.replace("\\'", "'").removesuffix(".value")
    part = "again" if "rematted" in op_name else "backward" if "transpose(" in op_name else "forward"
    pieces = [piece for piece in op_name.split("/") if piece not in ("body", "closed_call", "checkpoint", "cond")]
    named = [piece for piece in pieces if "->" in piece]
    last = named[-1] if named else pieces[-1]
    last = last.removeprefix("transpose(").removeprefix("jvp(").rstrip(")") if "->" in last else last
    return f"{part}: {last}"


def head(file: str, config: Config, vocabulary_size: int, parameters: int, topology: Topology) -> list[str]:
    """What is planned."""
    model, batch = config.model, config.batch
    tokens = batch.batch_size * batch.sequence_length
    return [
        f"{file} on {topology.describe()}",
        "",
        _line(
            "model",
            f"{amount(parameters)} parameters: {model.num_layers} layers of width {model.model_dim:,}, "
            f"vocabulary {vocabulary_size:,}",
        ),
        _line("step", f"{batch.batch_size:,} x {batch.sequence_length:,} tokens = {amount(tokens)}"),
    ]


def settings(config: Config, mesh: dict[str, int], topology: Topology) -> str:
    """`fsdp 128 x tensor 4, remat full, 2 microbatches, splash attention`."""
    axes = " x ".join(f"{axis} {ways}" for axis, ways in mesh.items() if ways > 1) or "one device"
    parts = config.train.num_microbatches
    several = f"{parts} microbatches" if parts > 1 else "1 microbatch"
    kernel = roofline.attention_kernel(config, topology)
    return f"{axes}, remat {config.model.remat}, {several}, {kernel} attention"


def memory_table(compiled: Compiled, topology: Topology) -> list[str]:
    """Verdict, and what is large."""
    limit, memory = topology.accelerator.hbm_bytes, compiled.memory
    needed = "more" if memory.total_bytes is None else gibibytes(memory.total_bytes)
    share = f" ({memory.total_bytes / limit:.0%})" if memory.total_bytes else ""
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    lines = [_title(f"memory of a chip, by its compiler: {verdict}, {needed} of {gibibytes(limit)}{share}")]
    lines.append(_line(gibibytes(compiled.placement.state_bytes), "parameters and optimizer, always there"))
    if memory.largest:
        lines.append("  largest at the fullest moment:")
        lines += [_line(gibibytes(buffer.bytes), _buffer(buffer)) for buffer in memory.largest]
    return lines


def _buffer(buffer: Buffer) -> str:
    return f"{buffer.array:<28} {_operation(buffer.op_name)}"[: _WIDTH - 16]


def collectives_table(collectives: Sequence[Collective], compiled: Compiled, topology: Topology) -> list[str]:
    """What chips send one another, and what of it is a fault."""
    rows = summed(collectives, compiled, topology)
    if not rows:
        return [_title("collectives: none")]
    lines = [
        _title("collectives of a step, by the compiler: hidden behind other work, or alone"),
        f"  {'':<18} {'over':<20} {'what':<33} {'times':>6} {'sent':>10} {'at peak':>9}",
    ]
    small = [row for row in rows if row.seconds < _SMALL_SHARE * rows[0].seconds]
    for row in rows[: len(rows) - len(small)]:
        lines.append(
            f"  {row.kind:<18} {row.over[:20]:<20} {row.what[:33]:<33} {row.runs:>6,} {gibibytes(row.sent_bytes):>10} "
            f"{duration(row.seconds):>9} {'hidden' if row.is_hidden else 'alone'}"
        )
    if small:
        sent, seconds = sum(row.sent_bytes for row in small), sum(row.seconds for row in small)
        runs = sum(row.runs for row in small)
        lines.append(f"  {'small ones':<18} {'':<54} {runs:>6,} {gibibytes(sent):>10} {duration(seconds):>9}")
    for collective, names in full_weight_reductions(collectives, compiled.placement.weights):
        lines += _fault(collective, names, compiled.placement.mesh)
    return lines


def _fault(collective: Collective, names: tuple[str, ...], mesh: dict[str, int]) -> list[str]:
    what, over = f"{gibibytes(collective.full_bytes)}, whole {' or '.join(names)}", _over(collective, mesh)
    if not collective.loops:
        return [f"  note: all-reduce over {over}, once a step, of {what}"]
    lines = [
        f"  FAULT: all-reduce over {over}, {collective.runs:,} times a step, of {what};",
        "    a reduce-scatter would send half of that and keep a share",
    ]
    if any("." in name for name in names):
        lines.append(
            "    mend: fewer ways of fsdp than a slice has chips, by config.mesh.replica or config.mesh.tensor"
        )
    return lines


def time_table(config: Config, done: roofline.Work, times: roofline.Roofline, topology: Topology) -> list[str]:
    """The roofline and what it makes of the whole run."""
    days = config.num_steps * times.step / 86400
    again = done.recomputed_flops / done.flops
    masked = f", {done.masked_flops / done.flops:.0%} above the diagonal" if done.masked_flops else ""
    terms = [
        (
            "products",
            times.products,
            f"{done.flops:.3g} FLOPs at {topology.accelerator.bfloat16_flops / 1e12:.0f} TFLOP/s, "
            f"{again:.0%} computed again{masked}",
        ),
        (
            "memory traffic",
            times.memory,
            f"{gibibytes(done.hbm_bytes)} at "
            f"{topology.accelerator.hbm_bytes_per_second / 1e12:.2f} TB/s, beside the products",
        ),
        ("links, hidden", times.hidden_links, "beside the products"),
        ("links, exposed", times.exposed_links, "nothing runs meanwhile"),
        ("network, hidden", times.hidden_network, "between slices or hosts, beside the products"),
        ("network, exposed", times.exposed_network, "between slices or hosts, nothing runs meanwhile"),
        ("optimizer", times.optimizer, f"{gibibytes(done.optimizer_bytes)} of memory traffic"),
    ]
    lines = [_title("time of a step, a model of published peaks without any stall: a bound, not a measurement")]
    lines += [f"  {name:<20} {duration(seconds):>9}   {note}" for name, seconds, note in terms if seconds > 0]
    lines.append(
        f"  {'step':<20} {duration(times.step):>9}   at least; MFU at most {times.mfu:.1%}, bound by {times.bound_by}"
    )
    hours = days * 24 * topology.num_devices
    lines.append(
        f"  {'run':<20} {days:>7.1f} d   at least: {config.num_steps:,} steps for {amount(config.train.num_tokens)} "
        f"tokens, {amount(hours)} chip-hours"
    )
    return lines


def _title(text: str) -> str:
    return f"\n{text}"


def _line(name: str, text: str) -> str:
    return f"  {name:<12} {text}"
