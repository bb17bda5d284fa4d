"""The time limits of the processes of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cm3leon_jax.config_part import Part
from cm3leon_jax.ranges import Range

_YEAR = 365 * 86_400


@dataclass(frozen=True)
class DistributedConfig(Part):
    """When the processes of a run give up on each other, in seconds; they exit with 75 and can be started again."""

    # Until the last of them is started.
    initialization_seconds: Annotated[int, Range(at_least=1, at_most=_YEAR)] = 300
    # Without a heartbeat of a process: it was killed or stopped, or its host is gone.
    heartbeat_seconds: Annotated[int, Range(at_least=1, at_most=_YEAR)] = 60
    # Without a finished training step, saving and evaluation included: something hangs. None: no limit.
    stall_seconds: Annotated[float, Range(above=0, at_most=_YEAR)] | None = 1200.0
