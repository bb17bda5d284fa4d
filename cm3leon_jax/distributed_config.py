"""When the processes of a run give each other up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cm3leon_jax.config_part import Part
from cm3leon_jax.ranges import Range

_YEAR = 365 * 86_400


@dataclass(frozen=True)
class DistributedConfig(Part):
    """When the processes of a run give each other up, in seconds; they then exit with 75 and can be started again."""

    # Until the last of them must have been started.
    initialization_seconds: Annotated[int, Range(at_least=1, at_most=_YEAR)] = 300
    # Without a sign of life of a process: it was killed or stopped, or its host is gone.
    heartbeat_seconds: Annotated[int, Range(at_least=1, at_most=_YEAR)] = 60
    # Without a finished training step, saving and evaluation included: something hangs; 0: never.
    stall_seconds: Annotated[float, Range(at_least=0, at_most=_YEAR)] = 1200.0
