"""Measures the newest checkpoint of a run on held-out documents; writes evaluation.json and report.html."""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.distributed import is_coordinator
from cm3leon_jax.evaluation.context import EvaluationContext, stage
from cm3leon_jax.evaluation.estimates import rows
from cm3leon_jax.evaluation.gallery import GALLERY, gallery, write_gallery
from cm3leon_jax.evaluation.judge_files import judge_hashes
from cm3leon_jax.evaluation.metrics import build_metrics, check_sets, headlines, measure
from cm3leon_jax.evaluation.report import render_report
from cm3leon_jax.evaluation.sets.configured import build_sets
from cm3leon_jax.files import atomic_write, write_json
from cm3leon_jax.generation.load import load_model
from cm3leon_jax.pages import number
from cm3leon_jax.progress import read_step_log

log = logging.getLogger(__name__)


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> None:
    """Runs the command; all processes measure, and the coordinator writes."""
    metrics, sets = build_metrics(config.evaluate.metrics), build_sets(config.evaluate)
    check_sets(metrics, sets)
    with stage(f"opening the newest checkpoint of {workdir}"):
        model = load_model(config, workdir)
    evaluation = EvaluationContext(config, model, PreparedCorpus.open(config.corpus.path, model.vocabulary), sets)
    values = measure(metrics, evaluation)
    entries, log_lines = gallery(evaluation), read_step_log(workdir / "metrics.jsonl")
    page = render_report(evaluation, workdir.name, values, headlines(metrics), log_lines, entries)
    if not is_coordinator():
        return
    hashes = {f"{name}_sha256": each.sha256 for name, each in sets.items()} | judge_hashes(metrics)
    # A perplexity may be infinite, which JSON has no word for.
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    write_json(workdir / "evaluation.json", finite | hashes)
    write_gallery(entries, workdir / GALLERY)
    with atomic_write(workdir / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    for name, value, estimate in rows(values):
        interval = f"  [{number(estimate.low)}, {number(estimate.high)}]  n = {estimate.n:,}" if estimate else ""
        log.info(f"  {name:<44} {number(value)}{interval}")
    log.info(f"{workdir / 'evaluation.json'} and {workdir / 'report.html'} are written")
