"""Demand on the loader, by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from cm3leon_jax.planning import input_demand, report
from cm3leon_jax.planning.costs import Rates
from cm3leon_jax.planning.input_demand import MEASURED
from tests.planning.pod_plans import make_pod_plan

PLANNED = make_pod_plan("v5p-1024")
TOKENS = 2048 * 4096


def with_step(seconds):
    return replace(PLANNED, estimate=replace(PLANNED.estimate, seconds=seconds))


def test_by_hand():
    found = input_demand.input_demand(with_step(2.0))
    assert found.tokens_per_second == pytest.approx(TOKENS / 2)
    assert found.tokens_per_second_per_host == pytest.approx(TOKENS / 2 / 128)
    assert found.load == pytest.approx((TOKENS / MEASURED.planned + TOKENS / 128 / MEASURED.built) / 2)


def test_the_verdict_follows_the_load():
    at_one = input_demand.input_demand(with_step(1.0)).load
    verdicts = [input_demand.input_demand(with_step(at_one / load)).verdict for load in (0.1, 0.49, 0.51, 0.99, 1.01)]
    assert verdicts == ["keeps up", "keeps up", "may not keep up", "may not keep up", "DOES NOT KEEP UP"]


def test_it_is_in_the_report():
    assert input_demand.line(PLANNED) in report.lines("a.py", PLANNED, Rates())
    assert report.as_json("a.py", PLANNED, Rates())["input"]["verdict"] == "keeps up"


def test_its_source_is_there():
    file, section, _ = MEASURED.source.split(", ", 2)
    assert f"## {section}" in (Path(__file__).parents[2] / file).read_text(encoding="utf-8")
