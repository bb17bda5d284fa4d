"""Compare the evaluations of several runs on one page: metrics with intervals, curves, and images of the same prompts.

Reads what `cm3leon train` and `cm3leon evaluate` left in the folder of each run.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from cm3leon_jax.evaluation.comparison import EvaluatedRun, render_comparison
from cm3leon_jax.files import atomic_write
from cm3leon_jax.paths import output_file, run_folder

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `compare`."""
    parser.add_argument(
        "runs", nargs="+", type=run_folder("RUN"), metavar="RUN", help="folder of a run that was evaluated"
    )
    parser.add_argument(
        "--output",
        type=output_file("--output"),
        default=Path("comparison.html"),
        metavar="FILE",
        help="the page (default: comparison.html)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs `cm3leon compare`."""
    runs = [EvaluatedRun.read(path) for path in arguments.runs]
    with atomic_write(arguments.output) as temporary:
        temporary.write_text(render_comparison(runs), encoding="utf-8")
    log.info(f"{arguments.output} is written")
