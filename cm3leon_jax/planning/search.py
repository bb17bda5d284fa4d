"""Which mesh, remat and number of microbatches: tried in the order of a model, judged by the compiler.

Every candidate has a bound below its time, as if all its traffic were hidden, and an estimate of its memory. They are
compiled from the lowest bound on, those first that should fit, until the next bound is above the best time found.
Estimates are corrected by what the compiler said of candidates before.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import write_json
from cm3leon_jax.models.flops import layer_matrices, output_matrices
from cm3leon_jax.planning import plan, report, roofline
from cm3leon_jax.planning.compile import CompileError
from cm3leon_jax.planning.topology import Topology

_REMATS = ("none", "save_dots", "save_attention", "full")
_MOST_TENSOR, _MOST_MICROBATCHES = 8, 32
# Bounds this near count as equal, and less traffic decides.
_EQUAL = 0.01


@dataclass(frozen=True)
class Candidate:
    """One setting of a run, with what is expected of it on one chip."""

    config: Config
    mesh: dict[str, int]
    bound_seconds: float
    traffic_seconds: float
    memory_bytes: float


def run(
    config: Config,
    vocabulary_size: int,
    pod: Topology,
    arguments: argparse.Namespace,
    status: plan.Status,
) -> int:
    """Searches, tells each verdict, and prints the best plan and the lines for its config."""
    found = candidates(config, vocabulary_size, pod)
    if not found:
        raise UserError(
            f"no mesh of {pod.num_devices} chips divides config.batch.batch_size {config.batch.batch_size} and "
            f"config.model.model_dim {config.model.model_dim}: change one of them, or the topology"
        )
    print(f"{arguments.config} on {pod.describe()}: {len(found)} settings, at most {arguments.search} are compiled\n")
    print(f"  {'mesh':<36} {'remat':<15} {'parts':>5} {'memory':>11} {'step':>9} {'MFU':>6}  {'collectives alone'}")
    tried: list[plan.Plan] = []
    for candidate in _in_order(found, pod, tried):
        if len(tried) == arguments.search:
            break
        best = _best(tried)
        if best is not None and candidate.bound_seconds >= best.times.step:
            break
        status.prefix = f"{_mesh(candidate.mesh)}, {candidate.config.model.remat}: "
        try:
            planned = plan.plan(candidate.config, vocabulary_size, pod, status)
        except (CompileError, UserError) as error:
            status("")
            print(f"  {_mesh(candidate.mesh):<36} {candidate.config.model.remat:<15} refused: {str(error)[:60]}")
            found.remove(candidate)
            continue
        status("")
        tried.append(planned)
        print(_row(planned))
    best = _best(tried)
    if best is None:
        least = min((planned.compiled.memory.total_bytes or 0) for planned in tried) if tried else 0
        print(f"\nnone of {len(tried)} fits; the least memory of a chip was {report.gibibytes(least)}")
        return plan.DOES_NOT_FIT
    print()
    print("\n".join(plan.lines(arguments.config, best)))
    print("\nthe lines for your config:\n")
    print("\n".join(f"    {line}" for line in config_lines(best)))
    if arguments.json:
        write_json(arguments.json, {"best": plan.as_json(arguments.config, best), "tried": [_short(p) for p in tried]})
    return 0


def candidates(config: Config, vocabulary_size: int, pod: Topology) -> list[Candidate]:
    """Every setting that divides, lowest bound first."""
    found = []
    for mesh in meshes(config, pod):
        rows = config.batch.batch_size // (mesh["replica"] * mesh["fsdp"])
        for parts in _powers_of_two(min(rows, _MOST_MICROBATCHES)):
            if rows % parts:
                continue
            for remat in _REMATS:
                changed = dataclasses.replace(
                    config,
                    model=dataclasses.replace(config.model, remat=remat),
                    mesh=dataclasses.replace(config.mesh, **mesh),
                    train=dataclasses.replace(config.train, num_microbatches=parts),
                )
                found.append(candidate(changed, mesh, vocabulary_size, pod))
    return sorted(found, key=lambda one: (round(math.log(one.bound_seconds) / _EQUAL), one.traffic_seconds))


def meshes(config: Config, pod: Topology) -> Iterator[dict[str, int]]:
    """Meshes whose axes divide the chips, the batch and the model."""
    chips = pod.num_devices // pod.num_slices
    model = config.model
    for tensor in _powers_of_two(min(_MOST_TENSOR, chips)):
        if math.gcd(model.num_heads, model.key_value_heads, model.hidden_dim) % tensor or chips % tensor:
            continue
        for replicas in _powers_of_two(chips // tensor):
            fsdp, rest = divmod(chips // tensor, replicas)
            ways = replicas * pod.num_slices * fsdp
            if rest == 0 and model.model_dim % fsdp == 0 and config.batch.batch_size % ways == 0:
                yield {"replica": replicas * pod.num_slices, "fsdp": fsdp, "tensor": tensor}


def _powers_of_two(most: int) -> Iterator[int]:
    power = 1
    while power <= most:
        yield power
        power *= 2


def candidate(config: Config, mesh: dict[str, int], vocabulary_size: int, pod: Topology) -> Candidate:
    """What is expected of one setting."""
    has_kernel = roofline.attention_kernel(config, pod) != "xla"
    done = roofline.work(config, vocabulary_size, mesh, has_kernel)
    chip = pod.accelerator
    links, network = _traffic_bytes(config, mesh, vocabulary_size, pod)
    link_seconds = links / chip.interconnect_bytes_per_second
    network_seconds = network / chip.network_bytes_per_second
    overlapped = max(
        done.flops / chip.bfloat16_flops, done.hbm_bytes / chip.hbm_bytes_per_second, link_seconds, network_seconds
    )
    return Candidate(
        config=config,
        mesh=mesh,
        bound_seconds=overlapped + done.optimizer_bytes / chip.hbm_bytes_per_second,
        traffic_seconds=link_seconds + network_seconds,
        memory_bytes=estimated_memory(config, mesh, vocabulary_size, has_kernel),
    )


def _traffic_bytes(config: Config, mesh: dict[str, int], vocabulary_size: int, pod: Topology) -> tuple[float, float]:
    """Bytes that a chip sends in a step: inside its slice or host, and beyond."""
    model, parts = config.model, config.train.num_microbatches
    layers = sum(layer_matrices(model).values()) * model.num_layers
    matrices = 2.0 * (layers + output_matrices(model, vocabulary_size)) / mesh["tensor"]
    passes = parts * (2 if model.remat == "none" else 3)
    shared_out = matrices * passes * (1 - 1 / mesh["fsdp"])
    copies = 2 * matrices / mesh["fsdp"] * parts * (1 - 1 / mesh["replica"])
    # The sequence is gathered and scattered around attention and feed-forward: forward, backward, and again.
    tokens = config.batch.batch_size * config.batch.sequence_length / (mesh["replica"] * mesh["fsdp"])
    activations = 2.0 * tokens * model.model_dim * model.num_layers * (1 - 1 / mesh["tensor"])
    tensor = activations * (8 if model.remat == "none" else 12)
    if pod.accelerator.is_tpu:
        return shared_out + tensor + (copies if pod.num_slices == 1 else 0), copies if pod.num_slices > 1 else 0.0
    inner = mesh["tensor"] * mesh["fsdp"]
    if inner <= pod.sides[1]:
        return shared_out + tensor, copies
    return tensor, shared_out + copies


def estimated_memory(config: Config, mesh: dict[str, int], vocabulary_size: int, has_kernel: bool) -> float:
    """Bytes of a chip, roughly: parameters, what the backward pass finds kept, a layer at work, scores of the head."""
    model, tensor = config.model, mesh["tensor"]
    layer = sum(layer_matrices(model).values())
    outside = output_matrices(model, vocabulary_size)
    parameters = layer * model.num_layers + outside
    rows = config.batch.batch_size / (mesh["replica"] * mesh["fsdp"] * config.train.num_microbatches)
    tokens = rows * config.batch.sequence_length
    heads = (model.num_heads + model.key_value_heads) * 2 * model.head_dim / tensor
    hidden = model.hidden_dim * (2 if model.gated else 1) / tensor
    scores = 0.0 if has_kernel else model.num_heads / tensor * config.batch.sequence_length
    D = model.model_dim / tensor
    kept = {
        "full": D,
        "save_attention": D + heads,
        "save_dots": 2 * D + heads + hidden,
        "none": 8 * D + 2 * heads + 3 * hidden + 5 * scores,
    }
    at_work = 8 * model.model_dim + 2 * heads + 3 * hidden + 6 * scores
    head = min(4 * tokens * vocabulary_size / tensor, 10 * 2**30) * 1.5
    return (
        16 * parameters / (mesh["fsdp"] * tensor)
        + (4 * parameters / (mesh["fsdp"] * tensor) if config.train.num_microbatches > 1 else 0)
        + 2 * tokens * kept[model.remat] * model.num_layers
        + max(2 * tokens * at_work + 6 * layer / tensor, head)
        + 6 * outside / tensor
    )


def _in_order(found: list[Candidate], pod: Topology, tried: list[plan.Plan]) -> Iterator[Candidate]:
    """Each candidate that may still fit, as estimates stand after those that were tried."""
    limit = pod.accelerator.hbm_bytes
    remaining = list(found)
    while remaining:
        correction = _correction(tried, found)
        likely = [one for one in remaining if one.memory_bytes * correction <= limit]
        # Where nothing should fit, what needs least.
        chosen = likely[0] if likely else min(remaining, key=lambda one: one.memory_bytes)
        remaining.remove(chosen)
        yield chosen


def _correction(tried: list[plan.Plan], found: list[Candidate]) -> float:
    """What the compiler found by what was estimated, of the last that was tried."""
    if not tried or not tried[-1].compiled.memory.total_bytes:
        return 1.0
    estimated = next(one.memory_bytes for one in found if one.config == tried[-1].config)
    return tried[-1].compiled.memory.total_bytes / estimated


def _best(tried: list[plan.Plan]) -> plan.Plan | None:
    fitting = [planned for planned in tried if planned.compiled.memory.fits]
    return min(fitting, key=lambda planned: planned.times.step, default=None)


def _row(planned: plan.Plan) -> str:
    memory, times = planned.compiled.memory, planned.times
    needed = report.gibibytes(memory.total_bytes) if memory.total_bytes else "too much"
    start = (
        f"  {_mesh(planned.compiled.placement.mesh):<36} {planned.config.model.remat:<15} "
        f"{planned.config.train.num_microbatches:>5} {needed:>11} "
    )
    if not memory.fits:
        return f"{start}does not fit"
    alone = report.duration(times.exposed_links + times.exposed_network)
    return f"{start}{report.duration(times.step):>9} {times.mfu:>6.1%}  {alone}"


def _mesh(mesh: dict[str, int]) -> str:
    return " x ".join(f"{axis} {ways}" for axis, ways in mesh.items() if ways > 1) or "one device"


def config_lines(planned: plan.Plan) -> list[str]:
    """What to write into a config file."""
    mesh, config = planned.compiled.placement.mesh, planned.config
    axes = ", ".join(f"{axis}={ways}" for axis, ways in mesh.items())
    return [
        f"config.mesh = dict({axes})",
        f'config.model.update(remat="{config.model.remat}")',
        f"config.train.update(num_microbatches={config.train.num_microbatches})",
    ]


def _short(planned: plan.Plan) -> dict[str, object]:
    return {
        "mesh": planned.compiled.placement.mesh,
        "remat": planned.config.model.remat,
        "microbatches": planned.config.train.num_microbatches,
        "fits": planned.compiled.memory.fits,
        "bytes": planned.compiled.memory.total_bytes,
        "step_seconds": planned.times.step,
        "mfu_bound": planned.times.mfu,
    }
