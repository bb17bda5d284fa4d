"""Compile a run for a pod you do not have: does it fit, what do its chips send, how fast could it be?

    cm3leon plan --config=configs/cm3leon_7b.py --topology=v5p:8x8x8
    cm3leon plan --config=configs/cm3leon_7b.py --topology=v5e:16x16*2 --config.model.remat=full --json=plan.json
    cm3leon plan --config=configs/cm3leon_7b.py --topology=v6e:16x16 --search

The compiler is the pod's own, and what is compiled is the step that `cm3leon train` runs, so memory and collectives are
facts. Times are a model: published peaks, and no stalls. Nothing has to be prepared, and no accelerator be there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import write_json
from cm3leon_jax.models.flops import FLOP_RULE
from cm3leon_jax.paths import output_file
from cm3leon_jax.planning import collectives, report, roofline, topology
from cm3leon_jax.planning.compile import Compiled, CompileError, compile_step
from cm3leon_jax.planning.topology import Topology
from cm3leon_jax.ranges import Range, whole_number
from cm3leon_jax.vocabulary import padded_size

# Exit code where the step does not fit: the config is wrong for that pod.
DOES_NOT_FIT = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `plan` takes beside the config."""
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5p:8x8x8, v5e:16x16*2 (two slices), v6e:16x16, h100:32x8 ...",
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
    """The command `cm3leon plan`."""
    pod = topology.parse(arguments.topology)
    topology.require_compiler(pod)
    vocabulary_size = size_of_vocabulary(config)
    with Status() as status:
        if arguments.search:
            from cm3leon_jax.planning import search

            return search.run(config, vocabulary_size, pod, arguments, status)
        try:
            planned = plan(config, vocabulary_size, pod, status)
        except CompileError as error:
            raise UserError(f"the compiler of {pod.accelerator.name} refused the step: {error}") from None
    print("\n".join(lines(arguments.config, planned)))
    if arguments.json:
        write_json(arguments.json, as_json(arguments.config, planned))
    return 0 if planned.compiled.memory.fits else DOES_NOT_FIT


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of one config on one pod."""

    config: Config
    pod: Topology
    vocabulary_size: int
    compiled: Compiled
    collectives: list[collectives.Collective]
    work: roofline.Work
    times: roofline.Roofline


def size_of_vocabulary(config: Config) -> int:
    """Rows of the embedding table, before there is a vocabulary."""
    text, masks = config.vocabulary.num_text_tokens, config.vocabulary.num_masks
    return padded_size(text, config.image_tokenizer.codebook_size, masks)


def plan(config: Config, vocabulary_size: int, pod: Topology, say: Callable[[str], None]) -> Plan:
    """Compiles one config and works out its bound."""
    compiled = compile_step(config, pod, say)
    placement = compiled.placement
    found = collectives.merged(collectives.find(compiled.program, placement.mesh)) if compiled.program else []
    has_kernel = roofline.attention_kernel(config, pod) != "xla"
    done = roofline.work(config, vocabulary_size, placement.mesh, has_kernel)
    times = roofline.roofline(done, found, pod, placement.coordinates)
    return Plan(config, pod, vocabulary_size, compiled, found, done, times)


def lines(file: str, planned: Plan) -> list[str]:
    """The whole plan as people read it."""
    config, compiled, pod = planned.config, planned.compiled, planned.pod
    written = report.head(file, config, planned.vocabulary_size, compiled.placement.num_parameters, pod)
    written.append(f"  {'settings':<12} {report.settings(config, compiled.placement.mesh, pod)}")
    seconds = f"{compiled.lower_seconds:.0f} s of tracing and {compiled.compile_seconds:.0f} s of compiling"
    written.append(f"  {'compiled':<12} in {seconds}")
    written += report.memory_table(compiled, pod)
    if not compiled.memory.fits:
        return [
            *written,
            "",
            "fix: more config.train.num_microbatches, a config.model.remat that keeps less, or --search",
        ]
    written += report.collectives_table(planned.collectives, compiled, pod)
    written += report.time_table(config, planned.work, planned.times, pod)
    written += ["", *textwrap.wrap(f"MFU counts {FLOP_RULE}.", 100)]
    return written


def as_json(file: str, planned: Plan) -> dict[str, Any]:
    """The whole plan for programs: bytes, seconds and counts, of one chip where not said otherwise."""
    compiled, times = planned.compiled, planned.times
    rows = report.summed(planned.collectives, compiled, planned.pod)
    faults = collectives.full_weight_reductions(planned.collectives, compiled.placement.weights)
    return {
        "config": file,
        "topology": planned.pod.name,
        "num_devices": planned.pod.num_devices,
        "mesh": compiled.placement.mesh,
        "remat": planned.config.model.remat,
        "microbatches": planned.config.train.num_microbatches,
        "compiler_options": compiled.placement.compiler_options,
        "num_parameters": compiled.placement.num_parameters,
        "memory": {
            "fits": compiled.memory.fits,
            "bytes": compiled.memory.total_bytes,
            "limit_bytes": planned.pod.accelerator.hbm_bytes,
            "state_bytes": compiled.placement.state_bytes,
            "largest": [dataclasses.asdict(buffer) for buffer in compiled.memory.largest],
        },
        "collectives": [dataclasses.asdict(row) for row in rows],
        "faults": [
            {"parameters": names, "bytes": fault.full_bytes, "axes": fault.axes, "runs": fault.runs}
            for fault, names in faults
            if fault.loops
        ],
        "model": {
            **dataclasses.asdict(planned.work),
            **{f"{name}_seconds": value for name, value in dataclasses.asdict(times).items() if name != "mfu"},
            "step_seconds": times.step,
            "mfu_bound": times.mfu,
            "bound_by": times.bound_by,
            "run_days": planned.config.num_steps * times.step / 86400,
        },
        "lower_seconds": compiled.lower_seconds,
        "compile_seconds": compiled.compile_seconds,
    }


class Status:
    """One line that says what is being done, where somebody watches."""

    def __init__(self) -> None:
        self._is_watched = sys.stderr.isatty()
        self.prefix = ""

    def __call__(self, text: str) -> None:
        """Replaces the line."""
        if self._is_watched:
            print(f"\r\033[K{self.prefix}{text}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Status:
        return self

    def __exit__(self, *_: object) -> None:
        self("")
