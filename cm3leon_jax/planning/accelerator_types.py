"""The names that Google and NVIDIA give pods, beside CHIP:SHAPE.

v5p-1024        1,024 cores: 512 chips, v5p:8x8x8
v5litepod-256   256 chips, v5e:16x16; the same as v5e-256
tpu7x-128       128 of JAX's devices: 64 chips, tpu7x:4x4x4
v5p-256*2       two slices of 128 chips
h100-256        256 GPUs: 32 hosts of 8

Sources: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x and types-topologies, read in 2026.
"""

from __future__ import annotations

import dataclasses
import re

from cm3leon_jax.accelerators import ACCELERATORS, BY_NAME
from cm3leon_jax.errors import UserError
from cm3leon_jax.planning.topology import Topology, host_sides, nearest_counts, parse, slice_sides

# What a family of names stands for: its chip, and how much of its number is one chip.
_FAMILIES = {
    "v4": ("v4", 2),
    "v5litepod": ("v5e", 1),
    "v5e": ("v5e", 1),
    "v5p": ("v5p", 2),
    "v6e": ("v6e", 1),
    "tpu7x": ("tpu7x", 2),
    **{chip.name: (chip.name, 1) for chip in ACCELERATORS if not chip.is_tpu},
}


def find_pod(name: str) -> Topology:
    """Finds a pod by its accelerator type or by CHIP:SHAPE. Raises a `UserError` if there is none of that name."""
    match = re.fullmatch(r"([a-z0-9]+)-(\d{1,7})(\*\d{1,6})?", name)
    if match is None or match[1] not in _FAMILIES:
        return parse(name)
    family, number = match[1], int(match[2])
    chip_name, per_chip = _FAMILIES[family]
    chip = BY_NAME[chip_name]
    num_chips, rest = divmod(number, per_chip)
    find_sides = slice_sides if chip.is_tpu else host_sides
    sides = None if rest else find_sides(chip, num_chips)
    if sides is None:
        counts = nearest_counts(chip, num_chips)
        listed = ", ".join(f"{family}-{count * per_chip}" for count in counts)
        unit = "GPUs" if not chip.is_tpu else "cores, two for each chip" if per_chip == 2 else "chips"
        raise UserError(f"--topology={name}: there is none; its number counts {unit}. The nearest: {listed}")
    # Slices and limits are checked where they are for any shape.
    return parse(f"{Topology(chip, sides).name}{match[3] or ''}")


def accelerator_type(pod: Topology) -> str | None:
    """Names the accelerator type whose shape this is, such as v5p-1024; None where another shape has that name."""
    chip = pod.accelerator
    for family, (chip_name, per_chip) in _FAMILIES.items():
        if chip_name == chip.name:
            one = dataclasses.replace(pod, num_slices=1)
            if (slice_sides if chip.is_tpu else host_sides)(chip, one.num_chips) != pod.sides or pod.is_twisted:
                return None
            slices = f"*{pod.num_slices}" if pod.num_slices > 1 else ""
            return f"{family}-{one.num_chips * per_chip}{slices}"
    return None
