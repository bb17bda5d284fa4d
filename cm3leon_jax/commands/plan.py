"""Compile a run for a pod you do not have: does it fit, what do its chips send, how fast could it be?

    cm3leon plan --config=configs/cm3leon_7b.py --topology=v5p-1024
    cm3leon plan --config=configs/cm3leon_7b.py --topology=v5e:16x16*2 --config.model.remat=full --json=plan.json
    cm3leon plan --config=configs/cm3leon_7b.py --topology=v6e-256 --search
    cm3leon plan --config=configs/cm3leon_7b.py --topology=v5p-512,v5e-256 --compare=configs/cm3leon_760m.py@v5e-64

The compiler is the pod's own, and what is compiled is the step that `cm3leon train` runs, so memory and collectives are
facts. Times are models: a bound of published peaks without any stall, and what published runs of other projects lead
one to expect, with a range. Nothing has to be prepared, and no accelerator is needed.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

from cm3leon_jax import config_file
from cm3leon_jax.config import Config
from cm3leon_jax.errors import EXIT_USER_ERROR, UserError
from cm3leon_jax.files import write_json
from cm3leon_jax.paths import output_file
from cm3leon_jax.planning import comparison, report, search, topology
from cm3leon_jax.planning.accelerator_types import find_pod
from cm3leon_jax.planning.compile import CompileError
from cm3leon_jax.planning.costs import Rates
from cm3leon_jax.planning.plan import PodPlan, make_plan, size_of_vocabulary
from cm3leon_jax.planning.units import duration, gibibytes
from cm3leon_jax.ranges import Range, number, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="an accelerator type (v5p-1024, v5litepod-256, tpu7x-128, h100-256 ...), or CHIP:SHAPE (v5p:8x8x8, "
        "h100:32x8 ...); *2 at the end: two slices; several, with commas between them: side by side",
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="CONFIG[@NAME]",
        help="another config side by side, on topologies of its own or on those of --topology; --config.FIELD=VALUE "
        "holds for both; may be repeated",
    )
    parser.add_argument(
        "--price",
        type=number("--price", Range(at_least=0, at_most=1e6)),
        metavar="DOLLARS",
        help="of a chip-hour: what the run costs",
    )
    parser.add_argument(
        "--storage-rate",
        type=number("--storage-rate", Range(above=0, at_most=1e6)),
        metavar="GB/S",
        help="between a host and the storage of checkpoints: what a save takes",
    )
    parser.add_argument(
        "--mtbf",
        type=number("--mtbf", Range(above=0, at_most=1e9)),
        metavar="HOURS",
        help="mean time between failures of one chip, with its part of a host: expected goodput, and how often to save",
    )
    parser.add_argument(
        "--restart",
        type=number("--restart", Range(at_least=0, at_most=1e6)),
        default=10.0,
        metavar="MINUTES",
        help="from a failure to the next step, reading the checkpoint aside (10)",
    )
    parser.add_argument(
        "--images",
        type=whole_number("--images", Range(at_least=1)),
        metavar="N",
        help="images that `cm3leon prepare` is to encode: the hours it takes at least",
    )
    parser.add_argument("--json", type=output_file("--json"), metavar="FILE", help="write the plan as JSON as well")
    parser.add_argument(
        "--search",
        nargs="?",
        type=whole_number("--search", Range(at_least=1)),
        const=8,
        default=0,
        metavar="N",
        help="try mesh, remat and microbatches, at most N compilations (8), and recommend",
    )


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    """Runs `cm3leon plan`; the exit code is that of a user error where no step fits."""
    wanted, rates = _wanted(config, arguments), _rates(arguments)
    for one in wanted:
        topology.require_compiler(one.pod)
    if len(wanted) == 1:
        planned, record = _plan(wanted[0], arguments.search, rates)
        if arguments.json:
            write_json(arguments.json, record)
        return 0 if planned is not None and planned.compiled.memory.fits else EXIT_USER_ERROR
    compared = [_compared(one, arguments.search, rates) for one in wanted]
    print("\n".join(comparison.lines(compared, rates)))
    if arguments.json:
        write_json(arguments.json, comparison.as_json(compared, rates))
    return 0 if any(one.fits for one in compared) else EXIT_USER_ERROR


def _rates(arguments: argparse.Namespace) -> Rates:
    """Reads what the user says about prices, storage and failures."""
    storage = arguments.storage_rate
    if arguments.mtbf is not None and storage is None:
        raise UserError("--mtbf: goodput depends on what a save takes: add --storage-rate=GB/S, of one host")
    storage_bytes = None if storage is None else 1e9 * storage
    return Rates(arguments.price, storage_bytes, arguments.mtbf, arguments.restart, arguments.images)


class Wanted(NamedTuple):
    """A config and the pod that it is to be planned for."""

    file: str
    config: Config
    pod: topology.Topology


def _wanted(config: Config, arguments: argparse.Namespace) -> list[Wanted]:
    """Lists what the command line asks for. Raises a `UserError` for the first name that is wrong."""
    pods = _find_pods(arguments.topology)
    wanted = [Wanted(arguments.config, config, pod) for pod in pods]
    for text in arguments.compare:
        file, at, names = text.rpartition("@")
        if not at:
            file, names = text, ""
        other = config_file.load(file, str(config_file.default_workdir(file)), arguments.overrides)
        wanted += [Wanted(file, other, pod) for pod in (_find_pods(names) if at else pods)]
    return wanted


def _find_pods(names: str) -> list[topology.Topology]:
    return [find_pod(name) for name in names.split(",")]


def _compared(one: Wanted, most: int, rates: Rates) -> comparison.ComparedPlan:
    """Plans one of several: what is refused is a column as well."""
    try:
        if not most:
            return comparison.ComparedPlan(one.file, one.pod, _compile(one))
        planned, _ = _search(one, most, rates)
        print()
        return comparison.ComparedPlan(one.file, one.pod, planned, "" if planned else "no setting that was tried fits")
    except UserError as error:
        return comparison.ComparedPlan(one.file, one.pod, None, str(error))


def _plan(one: Wanted, most: int, rates: Rates) -> tuple[PodPlan | None, dict[str, Any]]:
    """Makes and prints a plan, or searches for one with at most so many compilations; also returns its JSON."""
    if most:
        return _search(one, most, rates)
    planned = _compile(one)
    print("\n".join(report.lines(one.file, planned, rates)))
    return planned, report.as_json(one.file, planned, rates)


def _compile(one: Wanted) -> PodPlan:
    try:
        return make_plan(one.config, size_of_vocabulary(one.config), one.pod, _show_status)
    except CompileError as error:
        raise UserError(f"the compiler of {one.pod.accelerator.name} refused the step: {error}") from None
    finally:
        _show_status("")


def _search(one: Wanted, most: int, rates: Rates) -> tuple[PodPlan | None, dict[str, Any]]:
    """Compiles settings, printing each result, and prints the best plan with the lines for its config."""
    vocabulary_size = size_of_vocabulary(one.config)
    remaining = search.find_settings(one.config, vocabulary_size, one.pod)
    count = f"{len(remaining)} settings, at most {most} are compiled"
    print(f"{one.file} on {report.describe(one.pod)}: {count}\n")
    print(f"  {'mesh':<36} {'remat':<15} {'parts':>5} {'memory':>11} {'expected':>9} {'MFU':>6}  {'collectives alone'}")
    tried: list[tuple[search.Setting, PodPlan]] = []
    best = None
    while remaining and len(tried) < most:
        setting = search.next_setting(remaining, tried, one.pod)
        if best is not None and setting.expected_seconds >= best.estimate.seconds:
            break
        remaining.remove(setting)
        mesh, remat = report.mesh_text(setting.mesh), setting.config.model.remat
        say = functools.partial(_show_status, prefix=f"{mesh}, {remat}: ")
        try:
            planned = make_plan(setting.config, vocabulary_size, one.pod, say)
        except (CompileError, UserError) as error:
            print(f"  {mesh:<36} {remat:<15} refused: {str(error)[:60]}")
            continue
        finally:
            _show_status("")
        tried.append((setting, planned))
        best = search.best_plan([planned for _, planned in tried])
        print(_row(planned))
    plans = [planned for _, planned in tried]
    short = [report.short_json(planned) for planned in plans]
    if best is None:
        least = min((planned.compiled.memory.total_bytes or 0 for planned in plans), default=0)
        print(f"\nnone of {len(plans)} fits; the least memory of a chip was {gibibytes(least)}")
        return None, {"best": None, "tried": short}
    print()
    print("\n".join(report.lines(one.file, best, rates)))
    print("\nthe lines for your config:\n")
    print("\n".join(f"    {line}" for line in search.config_lines(best)))
    return best, {"best": report.as_json(one.file, best, rates), "tried": short}


def _row(planned: PodPlan) -> str:
    memory, times = planned.compiled.memory, planned.times
    needed = gibibytes(memory.total_bytes) if memory.total_bytes else "too much"
    start = (
        f"  {report.mesh_text(planned.compiled.placement.mesh):<36} {planned.config.model.remat:<15} "
        f"{planned.config.train.num_microbatches:>5} {needed:>11} "
    )
    if not memory.fits:
        return f"{start}does not fit"
    alone = duration(times.exposed_links + times.exposed_network)
    return f"{start}{duration(planned.estimate.seconds):>9} {planned.expected_mfu:>6.1%}  {alone}"


def _show_status(text: str, prefix: str = "") -> None:
    """Replaces the status line, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{prefix}{text}", end="", file=sys.stderr, flush=True)
