"""Lower bound on the time of a step, from published peaks: a model, not a measurement.

Matmuls run at the chip's peak, memory and links at theirs, and nothing ever stalls. Matmuls and memory traffic overlap
fully; a collective that the compiler scheduled next to other work overlaps with all of it, any other with nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from cm3leon_jax.config import Config
from cm3leon_jax.models.flops import (
    attention_flops_per_token,
    flops_per_token,
    layer_matrices,
    output_matrices,
    recomputed_flops_per_token,
)
from cm3leon_jax.planning.collectives import Collective
from cm3leon_jax.planning.topology import Topology

# HBM bytes per attention score that leaves the chip's fast memory: written and read as float32, then as weights of 2
# bytes, once forward, and about twice that backward.
_SCORE_BYTES = 12
# Attention without a kernel takes the queries in 8 blocks (models/attention.py) and computes for each all scores up to
# the end of the block: 1/8 more than those under the diagonal.
_MASKED_FRACTION = 1 / 8
# HBM bytes per logit: written as float32, read for the sum and for the target, read again, its gradient written and
# read by two matmuls.
_LOGIT_BYTES = 22
# HBM bytes per parameter: AdamW reads parameter, gradient and two moments, and writes all but the gradient; the norm
# reads the gradient once more.
_OPTIMIZER_BYTES = 32
# HBM bytes per parameter and microbatch, where gradients are summed.
_GRADIENT_SUM_BYTES = 12


@dataclass(frozen=True)
class Work:
    """Computation and memory traffic of one chip in a step, network aside."""

    model_flops: float
    recomputed_flops: float
    # For scores above the diagonal, which attention without a kernel computes and masks.
    masked_flops: float
    # Those of attention, of all three kinds.
    attention_flops: float
    weight_bytes: float
    activation_bytes: float
    logit_bytes: float
    optimizer_bytes: float

    @property
    def flops(self) -> float:
        return self.model_flops + self.recomputed_flops + self.masked_flops

    @property
    def hbm_bytes(self) -> float:
        """Memory traffic of the forward and backward passes."""
        return self.weight_bytes + self.activation_bytes + self.logit_bytes


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step by cause."""

    matmuls: float
    memory: float
    optimizer: float
    # The network inside a slice or host, and the one between them: next to other work, and alone.
    hidden_links: float
    exposed_links: float
    hidden_network: float
    exposed_network: float
    # Fraction of the chip's peak that the model's own FLOPs reach.
    mfu: float

    @property
    def overlapped(self) -> float:
        """The longest of what runs at the same time."""
        return max(self.matmuls, self.memory, self.hidden_links, self.hidden_network)

    @property
    def step(self) -> float:
        return self.overlapped + self.exposed_links + self.exposed_network + self.optimizer

    @property
    def bound_by(self) -> str:
        """What takes most of the step."""
        if self.exposed_links + self.exposed_network > self.overlapped:
            return "exposed collectives"
        names = {
            "matmuls": self.matmuls,
            "memory traffic": self.memory,
            "links": self.hidden_links,
            "the network between slices or hosts": self.hidden_network,
        }
        return max(names, key=lambda name: names[name])


def work(config: Config, vocabulary_size: int, mesh: dict[str, int], has_kernel: bool) -> Work:
    """Estimates the work of one chip; `has_kernel` says whether attention is fused."""
    model, length = config.model, config.batch.sequence_length
    num_chips, tensor = math.prod(mesh.values()), mesh["tensor"]
    tokens = config.batch.batch_size * length
    num_microbatches = config.train.num_microbatches
    recomputed = recomputed_flops_per_token(model, length, has_kernel)
    attention = model.num_layers * attention_flops_per_token(model, length)
    # Forward, backward and recomputed forward.
    passes = 3 + (model.remat in ("full", "save_dots")) + 0.5 * (model.remat == "save_attention")
    kernel_passes = 3.5 + (model.remat != "none")
    reads = 2.0 if model.remat == "none" else 3.0
    layer_size, output_size = sum(layer_matrices(model).values()), output_matrices(model, vocabulary_size)
    layers = 2.0 * layer_size * model.num_layers / tensor
    outside = 2.0 * output_size / tensor
    # Weights are read in each pass, and written first where they are gathered; gradients are written and read.
    gathered = 2.0 if mesh["fsdp"] > 1 else 1.0
    weights = num_microbatches * (layers * (reads * gathered + 2) + outside * (2 * gathered + 2))
    local_tokens = tokens / (mesh["replica"] * mesh["fsdp"])
    keys = 0.0 if has_kernel else length / 2 * (1 + _MASKED_FRACTION)
    scores = model.num_layers * model.num_heads / tensor * keys * _SCORE_BYTES * reads
    activations = model.num_layers * _activation_bytes(config, tensor) * reads + scores
    update_bytes = _OPTIMIZER_BYTES + (_GRADIENT_SUM_BYTES * num_microbatches if num_microbatches > 1 else 0)
    return Work(
        model_flops=tokens * flops_per_token(model, vocabulary_size, length) / num_chips,
        recomputed_flops=tokens * recomputed / num_chips,
        masked_flops=0.0 if has_kernel else tokens * attention * passes * _MASKED_FRACTION / num_chips,
        attention_flops=tokens
        * attention
        * (kernel_passes if has_kernel else passes * (1 + _MASKED_FRACTION))
        / num_chips,
        weight_bytes=weights,
        activation_bytes=local_tokens * activations,
        logit_bytes=local_tokens * vocabulary_size / tensor * _LOGIT_BYTES,
        optimizer_bytes=update_bytes * (layer_size * model.num_layers + output_size) / (mesh["fsdp"] * tensor),
    )


def _activation_bytes(config: Config, tensor: int) -> float:
    """Bytes per token that one pass of one layer reads and writes: inputs and outputs of matmuls, norms and sums."""
    model = config.model
    D, queries, hidden = model.model_dim, model.num_heads * model.head_dim / tensor, model.hidden_dim / tensor
    keys = model.key_value_heads * model.head_dim / tensor
    norms_and_sums, attention = 8 * D, (D + queries + 2 * keys) + (2 * queries + 2 * keys) + (queries + D)
    feed_forward = (D + hidden) * (3 if model.gated else 2)
    return 2.0 * (norms_and_sums + attention + feed_forward)


def attention_kernel(config: Config, topology: Topology) -> str:
    """Resolves `model.attention` for these chips."""
    if config.model.attention != "auto":
        return config.model.attention
    if topology.accelerator.is_tpu:
        return "splash"
    return "tokamax" if find_spec("tokamax") else "xla"


def roofline(
    done: Work, collectives: Sequence[Collective], topology: Topology, coordinates: Sequence[Sequence[int]]
) -> Roofline:
    """Bounds the time of a step; `coordinates` are those of each device of the flattened mesh."""
    chip = topology.accelerator
    seconds = {(is_network, is_hidden): 0.0 for is_network in (False, True) for is_hidden in (False, True)}
    for collective in collectives:
        key = (_leaves_the_slice(collective, coordinates), collective.is_hidden)
        seconds[key] += collective_seconds(collective, topology, coordinates)
    times = Roofline(
        matmuls=done.flops / chip.bfloat16_flops,
        memory=done.hbm_bytes / chip.hbm_bytes_per_second,
        optimizer=done.optimizer_bytes / chip.hbm_bytes_per_second,
        hidden_links=seconds[False, True],
        exposed_links=seconds[False, False],
        hidden_network=seconds[True, True],
        exposed_network=seconds[True, False],
        mfu=0.0,
    )
    return dataclasses.replace(times, mfu=done.model_flops / (chip.bfloat16_flops * times.step))


def collective_seconds(collective: Collective, topology: Topology, coordinates: Sequence[Sequence[int]]) -> float:
    """Computes the seconds of all its runs in a step, at the peak of the links of its group."""
    chip = topology.accelerator
    if _leaves_the_slice(collective, coordinates):
        rate = chip.network_bytes_per_second
    elif chip.is_tpu:
        links = torus_links([coordinates[device] for device in collective.group], topology)
        rate = chip.interconnect_bytes_per_second * links / chip.num_links
    else:
        rate = chip.interconnect_bytes_per_second
    return collective.runs * collective.sent_bytes / rate


def traffic_seconds(
    collectives: Sequence[Collective], topology: Topology, coordinates: Sequence[Sequence[int]]
) -> tuple[float, float, float]:
    """Sums the seconds of collectives, hidden or not: in a slice without and with the axis `tensor`, and beyond."""
    links = tensor_links = network = 0.0
    for collective in collectives:
        seconds = collective_seconds(collective, topology, coordinates)
        if _leaves_the_slice(collective, coordinates):
            network += seconds
        elif "tensor" in collective.axes:
            tensor_links += seconds
        else:
            links += seconds
    return links, tensor_links, network


def torus_links(group: Sequence[Sequence[int]], topology: Topology) -> int:
    """Counts the links from a chip to others of its group, given their coordinates: two on a closed ring, else one.

    Devices of one chip count as if all its links led from one to the other (a tpu7x: what joins its two cores has six
    times the rate of a link, docs.cloud.google.com/tpu/docs/tpu7x).
    """
    if len({tuple(coordinates) for coordinates in group}) == 1:
        return topology.accelerator.num_links
    links = 0
    for side, size in enumerate(topology.sides):
        along = {coordinates[side + 1] for coordinates in group}
        if len(along) > 1:
            links += 2 if topology.wrap[side] and len(along) == size else 1
    return max(1, links)


def _leaves_the_slice(collective: Collective, coordinates: Sequence[Sequence[int]]) -> bool:
    return collective.is_between_slices or len({coordinates[device][0] for device in collective.group}) > 1
