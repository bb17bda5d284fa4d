"""Search for mesh, remat and number of microbatches: ordered by a model, decided by the compiler.

Settings that should fit, by an estimate that the last compiled one corrects, are compiled from the least expected time
on (with traffic by formula), until the next is above the best one found.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.models.flops import layer_matrices, output_matrices
from cm3leon_jax.planning import expected, roofline
from cm3leon_jax.planning.plan import PodPlan
from cm3leon_jax.planning.topology import Topology

_REMATS = ("none", "save_dots", "save_attention", "full")
_MOST_TENSOR, _MOST_MICROBATCHES = 8, 32


@dataclass(frozen=True)
class Setting:
    """One setting of a run, with its estimates for one chip."""

    config: Config
    mesh: dict[str, int]
    expected_seconds: float
    memory_bytes: float


def find_settings(config: Config, vocabulary_size: int, pod: Topology) -> list[Setting]:
    """Finds every setting that divides the run, least expected time first. Raises a `UserError` if there is none."""
    found = []
    for mesh in meshes(config, pod):
        rows = config.batch.batch_size // (mesh["replica"] * mesh["fsdp"])
        counts = [count for count in _powers_of_two(min(rows, _MOST_MICROBATCHES)) if rows % count == 0]
        for num_microbatches, remat in itertools.product(counts, _REMATS):
            changed = replace(
                config,
                model=replace(config.model, remat=remat),
                mesh=replace(config.mesh, **mesh),
                train=replace(config.train, num_microbatches=num_microbatches),
            )
            found.append(_estimate(changed, mesh, vocabulary_size, pod))
    if not found:
        raise UserError(
            f"no mesh of {pod.num_devices} devices divides config.batch.batch_size {config.batch.batch_size} and "
            f"config.model.model_dim {config.model.model_dim}: change one of them, or the topology"
        )
    return sorted(found, key=lambda one: one.expected_seconds)


def meshes(config: Config, pod: Topology) -> Iterator[dict[str, int]]:
    """Yields the meshes whose axes divide the devices, the batch and the model."""
    devices = pod.num_devices // pod.num_slices
    model = config.model
    for tensor in _powers_of_two(min(_MOST_TENSOR, devices)):
        if math.gcd(model.num_heads, model.key_value_heads, model.hidden_dim) % tensor or devices % tensor:
            continue
        for replicas in _powers_of_two(devices // tensor):
            fsdp, rest = divmod(devices // tensor, replicas)
            batch_shards = replicas * pod.num_slices * fsdp
            if rest == 0 and model.model_dim % fsdp == 0 and config.batch.batch_size % batch_shards == 0:
                yield {"replica": replicas * pod.num_slices, "fsdp": fsdp, "tensor": tensor}


def _powers_of_two(most: int) -> Iterator[int]:
    return (1 << exponent for exponent in range(most.bit_length()))


def _estimate(config: Config, mesh: dict[str, int], vocabulary_size: int, pod: Topology) -> Setting:
    has_kernel = roofline.attention_kernel(config, pod) != "xla"
    done = roofline.work(config, vocabulary_size, mesh, has_kernel)
    chip = pod.accelerator
    links, tensor_links, network = traffic_bytes(config, mesh, vocabulary_size, pod)
    rate = chip.interconnect_bytes_per_second
    traffic = (links / rate, tensor_links / rate, network / chip.network_bytes_per_second)
    return Setting(
        config=config,
        mesh=mesh,
        expected_seconds=expected.estimate(expected.causes(config, done, traffic, pod), pod).seconds,
        memory_bytes=_memory_bytes(config, mesh, vocabulary_size, has_kernel),
    )


def traffic_bytes(
    config: Config, mesh: dict[str, int], vocabulary_size: int, pod: Topology
) -> tuple[float, float, float]:
    """Estimates the bytes that a device sends in a step: in its slice or host (the axis `tensor` apart), and beyond."""
    model, num_microbatches = config.model, config.train.num_microbatches
    layers = sum(layer_matrices(model).values()) * model.num_layers
    matrices = 2.0 * (layers + output_matrices(model, vocabulary_size)) / mesh["tensor"]
    passes = num_microbatches * (2 if model.remat == "none" else 3)
    fsdp = matrices * passes * (1 - 1 / mesh["fsdp"])
    replica = 2 * matrices / mesh["fsdp"] * num_microbatches * (1 - 1 / mesh["replica"])
    # The sequence is gathered and scattered around attention and feed-forward: forward, backward, and recomputed.
    tokens = config.batch.batch_size * config.batch.sequence_length / (mesh["replica"] * mesh["fsdp"])
    activations = 2.0 * tokens * model.model_dim * model.num_layers * (1 - 1 / mesh["tensor"])
    tensor = activations * (8 if model.remat == "none" else 12)
    if pod.accelerator.is_tpu:
        return fsdp + (replica if pod.num_slices == 1 else 0), tensor, replica if pod.num_slices > 1 else 0.0
    if mesh["tensor"] * mesh["fsdp"] <= pod.sides[1] * pod.accelerator.hosts_per_switch:
        return fsdp, tensor, replica
    return 0.0, tensor, fsdp + replica


def _memory_bytes(config: Config, mesh: dict[str, int], vocabulary_size: int, has_kernel: bool) -> float:
    """Estimates the bytes of a chip: parameters, activations kept for the backward pass, one layer at work, logits."""
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
    logits = min(4 * tokens * vocabulary_size / tensor, 10 * 2**30) * 1.5
    return (
        16 * parameters / (mesh["fsdp"] * tensor)
        + (4 * parameters / (mesh["fsdp"] * tensor) if config.train.num_microbatches > 1 else 0)
        + 2 * tokens * kept[model.remat] * model.num_layers
        + max(2 * tokens * at_work + 6 * layer / tensor, logits)
        + 6 * outside / tensor
    )


def next_setting(settings: Sequence[Setting], tried: Sequence[tuple[Setting, PodPlan]], pod: Topology) -> Setting:
    """Chooses the first setting that should fit, or else the one with the least memory."""
    correction = 1.0
    if tried:
        setting, planned = tried[-1]
        correction = (planned.compiled.memory.total_bytes or setting.memory_bytes) / setting.memory_bytes
    likely = (one for one in settings if one.memory_bytes * correction <= pod.accelerator.hbm_bytes)
    return next(likely, None) or min(settings, key=lambda one: one.memory_bytes)


def best_plan(plans: Sequence[PodPlan]) -> PodPlan | None:
    """Chooses the fastest plan that fits."""
    fitting = [planned for planned in plans if planned.compiled.memory.fits]
    return min(fitting, key=lambda planned: planned.estimate.seconds, default=None)


def config_lines(planned: PodPlan) -> list[str]:
    """Writes the settings of a plan as lines of a config file."""
    axes = ", ".join(f"{axis}={size}" for axis, size in planned.compiled.placement.mesh.items())
    return [
        f"config.mesh = dict({axes})",
        f'config.model.update(remat="{planned.config.model.remat}")',
        f"config.train.update(num_microbatches={planned.config.train.num_microbatches})",
    ]
