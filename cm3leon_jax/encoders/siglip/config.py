"""The values of SigLIP, which is imported: its folder has its shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cm3leon_jax.encoders.config import EncoderConfig


@dataclass(frozen=True)
class SiglipConfig(EncoderConfig):
    """A SigLIP that `cm3leon import` wrote to `path`."""

    implementation: ClassVar[str] = "cm3leon_jax.encoders.siglip.encoder:SiglipEncoder"

    family: str = "siglip"
