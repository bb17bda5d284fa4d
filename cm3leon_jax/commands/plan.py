"""Compile a run for a pod you do not have: does it fit, what do its chips send, how fast could it be?

    cm3leon plan --config=configs/cm3leon_7b.py --topology=v5p-1024
    cm3leon plan --config=configs/cm3leon_7b.py --topology=v5e:16x16*2 --config.model.remat=full --json=plan.json
    cm3leon plan --config=configs/cm3leon_7b.py --topology=v6e-256 --search

The compiler is the pod's own, and what is compiled is the step that `cm3leon train` runs, so memory and collectives are
facts. Times are models: a bound of published peaks without any stall, and what published runs of other projects lead
one to expect, with a range. Nothing has to be prepared, and no accelerator is needed.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from cm3leon_jax.config import Config
from cm3leon_jax.errors import EXIT_USER_ERROR, UserError
from cm3leon_jax.files import write_json
from cm3leon_jax.paths import output_file
from cm3leon_jax.planning import report, search, topology
from cm3leon_jax.planning.accelerator_types import find_pod
from cm3leon_jax.planning.compile import CompileError
from cm3leon_jax.planning.plan import PodPlan, make_plan, size_of_vocabulary
from cm3leon_jax.ranges import Range, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="an accelerator type (v5p-1024, v5litepod-256, tpu7x-128, h100-256 ...), or CHIP:SHAPE (v5p:8x8x8, "
        "h100:32x8 ...); *2 at the end: two slices",
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
    """Runs `cm3leon plan`; the exit code is that of a user error where the step does not fit."""
    pod = find_pod(arguments.topology)
    topology.require_compiler(pod)
    if arguments.search:
        return _search(config, pod, arguments)
    try:
        planned = make_plan(config, size_of_vocabulary(config), pod, _show_status)
    except CompileError as error:
        raise UserError(f"the compiler of {pod.accelerator.name} refused the step: {error}") from None
    finally:
        _show_status("")
    print("\n".join(report.lines(arguments.config, planned)))
    if arguments.json:
        write_json(arguments.json, report.as_json(arguments.config, planned))
    return 0 if planned.compiled.memory.fits else EXIT_USER_ERROR


def _search(config: Config, pod: topology.Topology, arguments: argparse.Namespace) -> int:
    """Compiles settings, printing each result, and prints the best plan with the lines for its config."""
    vocabulary_size = size_of_vocabulary(config)
    remaining = search.find_settings(config, vocabulary_size, pod)
    count = f"{len(remaining)} settings, at most {arguments.search} are compiled"
    print(f"{arguments.config} on {report.describe(pod)}: {count}\n")
    print(f"  {'mesh':<36} {'remat':<15} {'parts':>5} {'memory':>11} {'expected':>9} {'MFU':>6}  {'collectives alone'}")
    tried: list[tuple[search.Setting, PodPlan]] = []
    best = None
    while remaining and len(tried) < arguments.search:
        setting = search.next_setting(remaining, tried, pod)
        if best is not None and setting.expected_seconds >= best.estimate.seconds:
            break
        remaining.remove(setting)
        mesh, remat = report.mesh_text(setting.mesh), setting.config.model.remat
        say = functools.partial(_show_status, prefix=f"{mesh}, {remat}: ")
        try:
            planned = make_plan(setting.config, vocabulary_size, pod, say)
        except (CompileError, UserError) as error:
            print(f"  {mesh:<36} {remat:<15} refused: {str(error)[:60]}")
            continue
        finally:
            _show_status("")
        tried.append((setting, planned))
        best = search.best_plan([planned for _, planned in tried])
        print(_row(planned))
    plans = [planned for _, planned in tried]
    if best is None:
        least = min((planned.compiled.memory.total_bytes or 0 for planned in plans), default=0)
        print(f"\nnone of {len(plans)} fits; the least memory of a chip was {report.gibibytes(least)}")
        return EXIT_USER_ERROR
    print()
    print("\n".join(report.lines(arguments.config, best)))
    print("\nthe lines for your config:\n")
    print("\n".join(f"    {line}" for line in search.config_lines(best)))
    if arguments.json:
        short = [report.short_json(planned) for planned in plans]
        write_json(arguments.json, {"best": report.as_json(arguments.config, best), "tried": short})
    return 0


def _row(planned: PodPlan) -> str:
    memory, times = planned.compiled.memory, planned.times
    needed = report.gibibytes(memory.total_bytes) if memory.total_bytes else "too much"
    start = (
        f"  {report.mesh_text(planned.compiled.placement.mesh):<36} {planned.config.model.remat:<15} "
        f"{planned.config.train.num_microbatches:>5} {needed:>11} "
    )
    if not memory.fits:
        return f"{start}does not fit"
    alone = report.duration(times.exposed_links + times.exposed_network)
    return f"{start}{report.duration(planned.estimate.seconds):>9} {planned.expected_mfu:>6.1%}  {alone}"


def _show_status(text: str, prefix: str = "") -> None:
    """Replaces the status line, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{prefix}{text}", end="", file=sys.stderr, flush=True)
