"""What a step demands of the batch loader of each host, beside what the loader was measured to give.

Every host plans all rows of a batch (shuffling, packing) and builds its own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from cm3leon_jax.planning.plan import PodPlan
from cm3leon_jax.planning.units import amount


@dataclass(frozen=True)
class LoaderRates:
    """Measured tokens per CPU second of one core, padding too, and where that was measured."""

    planned: float
    built: float
    source: str


# Every file in the page cache; a cold disk or a bucket is not in it.
MEASURED = LoaderRates(1.2e9, 37e6, "benchmarks/RESULTS.md, One of many hosts, 2026-11-30")
# Of one core, on which batches are built ahead; another CPU may take twice as long.
_SAFE_LOAD = 0.5


@dataclass(frozen=True)
class InputDemand:
    """Input of a run at the expected time of a step."""

    tokens_per_second: float
    # Of each host, for its own rows.
    tokens_per_second_per_host: float
    # Fraction of one core that the loader of a host needs.
    load: float
    rates: LoaderRates

    @property
    def verdict(self) -> str:
        """Whether the loader keeps up."""
        if self.load <= _SAFE_LOAD:
            return "keeps up"
        return "may not keep up" if self.load <= 1 else "DOES NOT KEEP UP"


def input_demand(planned: PodPlan) -> InputDemand:
    """Computes what the expected step of a plan demands of each host."""
    batch, hosts, seconds = planned.config.batch, planned.pod.num_hosts, planned.estimate.seconds
    tokens = batch.batch_size * batch.sequence_length
    load = (tokens / MEASURED.planned + tokens / hosts / MEASURED.built) / seconds
    return InputDemand(tokens / seconds, tokens / seconds / hosts, load, MEASURED)


def line(planned: PodPlan) -> str:
    """Formats the demand as one line."""
    found = input_demand(planned)
    needed = f"{amount(found.tokens_per_second_per_host)} tokens/s a host: {found.load:.1%} of a core, as measured"
    return f"  {'input':<20} {'':>9}   {found.verdict}, {needed}"


def as_json(planned: PodPlan) -> dict[str, Any]:
    """Collects the demand for programs."""
    found = input_demand(planned)
    return {**dataclasses.asdict(found), "verdict": found.verdict}
