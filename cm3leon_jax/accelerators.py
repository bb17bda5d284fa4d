"""Lists the published peaks of TPU and GPU chips, and tells which of them a host has.

Sources, read in 2026: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x; the links of a v4 (six of 50 GB/s)
are those of arXiv 2304.01433, section 2, and its port of the datacenter's network is taken to be a v5p's, since no page
gives it. NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM, DGX B200 and GB200 NVL72 (dense bfloat16 peak), and
of DGX A100 and H100 (one 200 or 400 Gbit/s port per GPU, 400 on the later ones). Rates of links are those of one
direction, half of what the pages give. Usable HBM is what the TPU compiler (libtpu 0.0.52) or the GPU's driver leaves.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

_GIB = 2**30


@dataclass(frozen=True)
class Accelerator:
    """Published peaks of what JAX calls a device: a chip, or one of the two cores of a tpu7x; bytes and seconds."""

    name: str
    # The values of `jax.Device.device_kind` for it.
    device_kinds: tuple[str, ...]
    bfloat16_flops: float
    hbm_bytes: int
    hbm_bytes_per_second: float
    # From a chip to its neighbors over all its links together: ICI, or NVLink.
    interconnect_bytes_per_second: float
    # Links of a torus: two for each of its axes. 0: a switch, where any chip reaches any other at the whole rate.
    num_links: int
    # From a chip to other slices or hosts: DCN, or its port of the cluster's network.
    network_bytes_per_second: float
    devices_per_chip: int = 1
    # GPUs of a host, and the hosts that one NVLink switch joins: 18 in a rack of GB200.
    gpus_per_host: int = 8
    hosts_per_switch: int = 1

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU; otherwise an NVIDIA GPU."""
        return self.num_links > 0


ACCELERATORS = (
    Accelerator("v4", ("TPU v4",), 275e12, int(30.75 * _GIB), 1200e9, 300e9, 6, 6.25e9),
    Accelerator("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, int(15.75 * _GIB), 819e9, 200e9, 4, 3.125e9),
    Accelerator("v5p", ("TPU v5", "TPU v5p"), 459e12, int(95.73 * _GIB), 2765e9, 600e9, 6, 6.25e9),
    Accelerator("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, int(31.24 * _GIB), 1638e9, 400e9, 4, 12.5e9),
    # Half of a chip.
    Accelerator("tpu7x", ("TPU7x",), 2307e12 / 2, int(94.74 * _GIB), 7380e9 / 2, 600e9 / 2, 6, 12.5e9 / 2, 2),
    Accelerator("a100", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB"), 312e12, 78 * _GIB, 2039e9, 300e9, 0, 25e9),
    Accelerator("h100", ("NVIDIA H100 80GB HBM3", "NVIDIA H100"), 989e12, 78 * _GIB, 3350e9, 450e9, 0, 50e9),
    Accelerator("h200", ("NVIDIA H200",), 989e12, 139 * _GIB, 4800e9, 450e9, 0, 50e9),
    Accelerator("b200", ("NVIDIA B200",), 2250e12, 176 * _GIB, 8000e9, 900e9, 0, 50e9),
    Accelerator("gb200", ("NVIDIA GB200",), 2500e12, 182 * _GIB, 8000e9, 900e9, 0, 50e9, 1, 4, 18),
)
BY_NAME = {accelerator.name: accelerator for accelerator in ACCELERATORS}


def by_device_kind(kind: str) -> Accelerator | None:
    """The accelerator that `jax.Device.device_kind` names; None where its peaks are not known."""
    return next((accelerator for accelerator in ACCELERATORS if kind in accelerator.device_kinds), None)


def host_has_tpu() -> bool:
    """Whether this host has a TPU, from its device files: asking JAX would initialize the device."""
    return _has_device("accel[0-9]*", "vfio/[0-9]*")


def host_has_gpu() -> bool:
    """Whether this host has an NVIDIA GPU."""
    return _has_device("nvidia[0-9]*")


def _has_device(*patterns: str) -> bool:
    return any(found for pattern in patterns for found in Path("/dev").glob(pattern))


def ignore_absent_tpu() -> None:
    """Keeps JAX from loading libtpu on a host without a TPU, where `plan` has it installed: it logs errors."""
    if not host_has_tpu() and importlib.util.find_spec("libtpu"):
        os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if host_has_gpu() else "cpu")
