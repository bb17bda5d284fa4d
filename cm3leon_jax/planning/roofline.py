"""How long a step takes at least: a model made of published peaks, not a measurement.

Products run at the chip's peak, memory and links at theirs, nothing ever stalls. Products and memory traffic overlap
fully; a collective that the compiler put beside other work overlaps with all of it, any other stands alone.
"""

from __future__ import annotations

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

# Bytes of HBM traffic for one score of attention that leaves the chip's fast memory: written and read as float32, then
# as weights of 2 bytes, once forward, and about twice that backward.
_SCORE_BYTES = 12
# Attention without a kernel goes through the queries in 8 blocks (model/attention.py), and computes for each all scores
# up to the block's end: so many of those under the diagonal again, for nothing.
_MASKED_SHARE = 1 / 8
# The same for one logit: written as float32, read for the sum and for the target, read again, its gradient written and
# read by two products.
_LOGIT_BYTES = 22
# AdamW reads parameter, gradient and two moments, writes all but the gradient; the norm reads the gradient once more.
# The sum over microbatches takes 12 bytes more for each.
_OPTIMIZER_BYTES = 32


@dataclass(frozen=True)
class Work:
    """What one chip does in a step, network aside."""

    model_flops: float
    recomputed_flops: float
    # Scores above the diagonal that attention without a kernel computes and masks.
    masked_flops: float
    weight_bytes: float
    activation_bytes: float
    logit_bytes: float
    optimizer_bytes: float

    @property
    def flops(self) -> float:
        """All that is computed."""
        return self.model_flops + self.recomputed_flops + self.masked_flops

    @property
    def hbm_bytes(self) -> float:
        """Memory traffic of the passes forward and backward."""
        return self.weight_bytes + self.activation_bytes + self.logit_bytes


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step, by what they go into."""

    products: float
    memory: float
    optimizer: float
    # The network of a slice or host, and the one beyond it: beside other work, and alone.
    hidden_links: float
    exposed_links: float
    hidden_network: float
    exposed_network: float
    # Share of the peak that the model's own FLOPs reach.
    mfu: float

    @property
    def overlapped(self) -> float:
        """The longest of what runs side by side."""
        return max(self.products, self.memory, self.hidden_links, self.hidden_network)

    @property
    def step(self) -> float:
        """The whole."""
        return self.overlapped + self.exposed_links + self.exposed_network + self.optimizer

    @property
    def bound_by(self) -> str:
        """What takes the most of it."""
        exposed = self.exposed_links + self.exposed_network
        if exposed > self.overlapped:
            return "exposed collectives"
        names = {
            "products": self.products,
            "memory traffic": self.memory,
            "links": self.hidden_links,
            "the network between slices or hosts": self.hidden_network,
        }
        return max(names, key=lambda name: names[name])


def work(config: Config, vocabulary_size: int, mesh: dict[str, int], has_kernel: bool) -> Work:
    """What one chip computes and moves in a step, by formula; `has_kernel` says whether attention is fused."""
    model, length = config.model, config.batch.sequence_length
    chips, tensor = math.prod(mesh.values()), mesh["tensor"]
    tokens = config.batch.batch_size * length
    parts = config.train.num_microbatches
    recomputed = recomputed_flops_per_token(model, length, has_kernel)
    attention = model.num_layers * attention_flops_per_token(model, length)
    # Forward, backward and again.
    passes = 3 + (model.remat in ("full", "save_dots")) + 0.5 * (model.remat == "save_attention")
    again = 2.0 if model.remat == "none" else 3.0
    layers = 2.0 * sum(layer_matrices(model).values()) * model.num_layers / tensor
    outside = 2.0 * output_matrices(model, vocabulary_size) / tensor
    gathered = 2.0 if mesh["fsdp"] > 1 else 1.0
    # Weights are read in each pass, and written first where they are gathered; gradients are written and read.
    weights = parts * (layers * (again * gathered + 2) + outside * (2 * gathered + 2))
    local_tokens = tokens / (mesh["replica"] * mesh["fsdp"])
    keys = 0.0 if has_kernel else length / 2 * (1 + _MASKED_SHARE)
    scores = model.num_layers * model.num_heads / tensor * keys * _SCORE_BYTES * again
    activations = model.num_layers * _activation_bytes(config, tensor) * again + scores
    parameters = sum(layer_matrices(model).values()) * model.num_layers + output_matrices(model, vocabulary_size)
    return Work(
        model_flops=tokens * flops_per_token(model, vocabulary_size, length) / chips,
        recomputed_flops=tokens * recomputed / chips,
        masked_flops=0.0 if has_kernel else tokens * attention * passes * _MASKED_SHARE / chips,
        weight_bytes=weights,
        activation_bytes=local_tokens * activations,
        logit_bytes=local_tokens * vocabulary_size / tensor * _LOGIT_BYTES,
        optimizer_bytes=(_OPTIMIZER_BYTES + (12 * parts if parts > 1 else 0)) * parameters / (mesh["fsdp"] * tensor),
    )


def _activation_bytes(config: Config, tensor: int) -> float:
    """Bytes that one pass of one layer reads and writes for a token: in and out of products, norms and sums."""
    model = config.model
    D, queries, hidden = model.model_dim, model.num_heads * model.head_dim / tensor, model.hidden_dim / tensor
    keys = model.key_value_heads * model.head_dim / tensor
    norms_and_sums, attention = 8 * D, (D + queries + 2 * keys) + (2 * queries + 2 * keys) + (queries + D)
    feed_forward = (D + hidden) * (3 if model.gated else 2)
    return 2.0 * (norms_and_sums + attention + feed_forward)


def attention_kernel(config: Config, topology: Topology) -> str:
    """Which attention the step runs on these chips: `model.attention`, or what "auto" comes to."""
    if config.model.attention != "auto":
        return config.model.attention
    if topology.accelerator.is_tpu:
        return "splash"
    return "tokamax" if find_spec("tokamax") else "xla"


def roofline(
    done: Work, collectives: Sequence[Collective], topology: Topology, coordinates: Sequence[Sequence[int]]
) -> Roofline:
    """The step's bound.

    Args:
      done: of one chip.
      collectives: of the compiled step.
      topology: its chips and links.
      coordinates: where each device of the flattened mesh is, as `topology.coordinates` says.
    """
    chip = topology.accelerator
    seconds = {(network, hidden): 0.0 for network in (False, True) for hidden in (False, True)}
    for collective in collectives:
        key = (_leaves_the_slice(collective, coordinates), collective.is_hidden)
        seconds[key] += collective_seconds(collective, topology, coordinates)
    times = Roofline(
        products=done.flops / chip.bfloat16_flops,
        memory=done.hbm_bytes / chip.hbm_bytes_per_second,
        optimizer=done.optimizer_bytes / chip.hbm_bytes_per_second,
        hidden_links=seconds[False, True],
        exposed_links=seconds[False, False],
        hidden_network=seconds[True, True],
        exposed_network=seconds[True, False],
        mfu=0.0,
    )
    return Roofline(
        **{name: getattr(times, name) for name in times.__dataclass_fields__ if name != "mfu"},
        mfu=done.model_flops / (chip.bfloat16_flops * times.step),
    )


def collective_seconds(collective: Collective, topology: Topology, coordinates: Sequence[Sequence[int]]) -> float:
    """Seconds of all its runs in a step, at the peak of the links that its group has."""
    chip = topology.accelerator
    if _leaves_the_slice(collective, coordinates):
        rate = chip.network_bytes_per_second
    elif chip.is_tpu:
        links = torus_links([coordinates[device] for device in collective.group], topology)
        rate = chip.interconnect_bytes_per_second * links / chip.num_links
    else:
        rate = chip.interconnect_bytes_per_second
    return collective.runs * collective.sent_bytes / rate


def torus_links(places: Sequence[Sequence[int]], topology: Topology) -> int:
    """Links over which a chip of a group at these places reaches others of it: two along a closed ring, else one."""
    links = 0
    for side, size in enumerate(topology.sides):
        along = {place[side + 1] for place in places}
        if len(along) > 1:
            links += 2 if topology.wrap[side] and len(along) == size else 1
    return max(1, links)


def _leaves_the_slice(collective: Collective, coordinates: Sequence[Sequence[int]]) -> bool:
    return collective.is_between_slices or len({coordinates[device][0] for device in collective.group}) > 1
