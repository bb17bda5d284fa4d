"""What a run costs, and what its checkpoints and failures take of it, from prices and rates that the user gives."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from cm3leon_jax.planning.goodput import best_interval, expected_goodput
from cm3leon_jax.planning.plan import PodPlan
from cm3leon_jax.planning.units import amount, duration, gibibytes

# With less, a run is not said to end.
_LEAST_GOODPUT = 1e-3


@dataclass(frozen=True)
class Rates:
    """What no compiler knows; None where the user did not say."""

    # Dollars per chip-hour.
    price: float | None = None
    # Bytes per second between one host and the storage of checkpoints.
    storage_bytes_per_second: float | None = None
    # Mean time between failures of one chip, with its part of the host.
    chip_hours_between_failures: float | None = None
    # From a failure to the next step, reading the checkpoint aside.
    restart_minutes: float = 10.0
    # Images that `prepare` is to encode.
    num_images: int | None = None


@dataclass(frozen=True)
class Failures:
    """What failures take of a run, as if each save held up the steps until it is written."""

    # Between two failures of any chip.
    hours_between: float
    goodput: float
    # The interval between saves with the highest goodput, in steps, and that goodput.
    best_save_every: int
    best_goodput: float


@dataclass(frozen=True)
class RunCosts:
    """Estimates for a whole run; of three values, the least, the expected and the most."""

    # Of the arrays, before Orbax compresses them.
    checkpoint_bytes: int
    save_seconds: float | None
    failures: Failures | None
    # With failures, where they are known; None where they leave next to nothing of it.
    days: tuple[float, float, float] | None
    dollars: tuple[float, float, float] | None


def run_costs(planned: PodPlan, rates: Rates) -> RunCosts:
    """Estimates what the run of a plan costs."""
    placement, pod = planned.compiled.placement, planned.pod
    save = failures = dollars = None
    goodput = 1.0
    if rates.storage_bytes_per_second is not None:
        # All hosts write, each a part of what is saved once; every one reads what its devices hold.
        save = placement.checkpoint_bytes / pod.num_hosts / rates.storage_bytes_per_second
        read = placement.state_bytes * pod.num_devices / pod.num_hosts / rates.storage_bytes_per_second
        if rates.chip_hours_between_failures is not None:
            between = 3600 * rates.chip_hours_between_failures / pod.num_chips
            failures = _failures(planned, save, 60 * rates.restart_minutes + read, between)
            goodput = failures.goodput
    days = _scaled(planned.expected_days, 1 / goodput) if goodput > _LEAST_GOODPUT else None
    if days is not None and rates.price is not None:
        dollars = _scaled(days, rates.price * 24 * pod.num_chips)
    return RunCosts(placement.checkpoint_bytes, save, failures, days, dollars)


def _failures(planned: PodPlan, save: float, restart: float, between: float) -> Failures:
    step = planned.estimate.seconds
    best = max(1, round(best_interval(save, between) / step))
    goodput, best_goodput = (
        expected_goodput(steps * step, save, restart, between) for steps in (planned.config.train.save_every, best)
    )
    return Failures(between / 3600, goodput, best, best_goodput)


def _scaled(values: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    least, expected, most = (factor * value for value in values)
    return least, expected, most


def lines(planned: PodPlan, rates: Rates) -> list[str]:
    """Formats the costs; only the size of a checkpoint where the user gave no rates."""
    costs, train, hosts = run_costs(planned, rates), planned.config.train, planned.pod.num_hosts
    text = [
        "\nthe run as a whole, an estimate",
        _row(
            "checkpoint",
            gibibytes(costs.checkpoint_bytes),
            f"before compression, every {train.save_every:,} steps; the last {train.keep_checkpoints} are kept",
        ),
    ]
    if costs.save_seconds is not None and rates.storage_bytes_per_second is not None:
        rate = f"{rates.storage_bytes_per_second / 1e9:g} GB/s"
        each = f"{hosts} hosts at {rate} each" if hosts > 1 else f"one host at {rate}"
        is_longer = costs.save_seconds > train.save_every * planned.estimate.seconds
        then = "longer than the steps between two saves" if is_longer else "while steps go on"
        text.append(_row("save", duration(costs.save_seconds), f"{each}, {then}"))
    if costs.failures is not None:
        text += _failure_lines(costs, costs.failures, rates)
    if costs.dollars is not None:
        least, expected, most = map(money, costs.dollars)
        with_failures = ", with failures" if costs.failures else ""
        text.append(_row("cost", expected, f"{least} to {most}, at ${rates.price:g} per chip-hour{with_failures}"))
    return text


def _failure_lines(costs: RunCosts, found: Failures, rates: Rates) -> list[str]:
    each = f"one in so many hours, of a chip in {rates.chip_hours_between_failures:,g}"
    restart = f"restarts of {rates.restart_minutes:g} min and reading"
    text = [
        _row("failures", f"{found.hours_between:.3g} h", each),
        _row("goodput", f"{found.goodput:.1%}", f"at least, as if steps waited for saves; {restart}"),
        _row("", f"{found.best_goodput:.1%}", f"the best, with config.train.save_every {found.best_save_every:,}"),
    ]
    if costs.days is None:
        return [*text, _row("run", "never", "ends, in effect: too few steps between failures")]
    least, days, most = costs.days
    count = f"{24 * days / found.hours_between:,.0f} failures"
    return [*text, _row("run", f"{days:.1f} d", f"{least:.1f} to {most:.1f} d, with {count}")]


def cells(planned: PodPlan, rates: Rates) -> dict[str, str]:
    """Formats the costs as cells of a table of several plans, by their rows."""
    costs = run_costs(planned, rates)
    found = {"checkpoint": gibibytes(costs.checkpoint_bytes)}
    if costs.save_seconds is not None:
        found["save"] = duration(costs.save_seconds)
    if costs.failures is not None:
        found["goodput"] = f"{costs.failures.goodput:.1%} (at best {costs.failures.best_goodput:.1%})"
    if rates.price is not None:
        found["cost"] = "never ends" if costs.dollars is None else money(costs.dollars[1])
    return found


def money(dollars: float) -> str:
    """Formats dollars: `$435 k`."""
    return f"${amount(dollars)}"


def _row(name: str, value: str, note: str) -> str:
    return f"  {name:<20} {value:>9}   {note}"


def as_json(planned: PodPlan, rates: Rates) -> dict[str, Any]:
    """Collects the costs for programs, with the rates that they rest on."""
    return {**dataclasses.asdict(run_costs(planned, rates)), "rates": dataclasses.asdict(rates)}
