"""The expected time: its causes by hand, its constants against a fit, and its range."""

import importlib.util
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.planning import expected, roofline
from cm3leon_jax.planning.accelerator_types import find_pod
from cm3leon_jax.planning.topology import parse

CONFIG = Config(
    batch=BatchConfig(batch_size=2048, sequence_length=4096),
    model=ModelConfig(num_layers=32, model_dim=4096, num_heads=32, remat="none"),
)
MESH = {"replica": 1, "fsdp": 512, "tensor": 1}
DONE = roofline.work(CONFIG, 64_640, MESH, has_kernel=True)


@pytest.fixture
def calibrate(monkeypatch):
    path = Path(__file__).parents[2] / "benchmarks" / "calibrate_plan.py"
    spec = importlib.util.spec_from_file_location("calibrate_plan", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up their module.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_causes_by_hand():
    found = expected.causes(CONFIG, DONE, (0.1, 0.2, 0.3), find_pod("v5p-1024"))
    tokens = 2048 * 4096 / 512
    # Forward and backward, and once more the scores in the kernel's backward pass.
    attention = 3.5 * 32 * 2 * 4096 * 4096 * tokens
    assert found.attention == pytest.approx(attention / 459e12)
    assert found.matmuls == pytest.approx(6 * (32 * 12 * 4096**2 + 64_640 * 4096) * tokens / 459e12)
    assert found.activations == pytest.approx(2 * 32 * (4096 + 2 * 16384 + 4 * 4096) * tokens / 2765e9)
    assert (found.links, found.tensor_links, found.network) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("remat", ["none", "save_dots", "save_attention", "full"])
@pytest.mark.parametrize("has_kernel", [True, False])
def test_all_work_is_matmuls_or_attention(remat, has_kernel):
    config = replace(CONFIG, model=replace(CONFIG.model, remat=remat))
    done = roofline.work(config, 64_640, MESH, has_kernel)
    matrices = 32 * 12 * 4096**2 + 64_640 * 4096
    again = {"none": 0, "save_dots": 0, "save_attention": 32 * 5 * 4096**2, "full": 32 * 8 * 4096**2}[remat]
    matmuls = (6 * matrices + 2 * again) * 2048 * 4096 / 512
    assert done.flops - done.attention_flops == pytest.approx(matmuls)


def test_more_of_any_cause_takes_longer_and_slices_take_longer_than_one():
    one = expected.causes(CONFIG, DONE, (0.1, 0.1, 0.1), find_pod("v5p-1024"))
    base = expected.estimate(one, find_pod("v5p-1024")).seconds
    assert base > DONE.flops / 459e12
    for name in expected.CAUSES:
        longer = replace(one, **{name: getattr(one, name) + 1})
        assert expected.estimate(longer, find_pod("v5p-1024")).seconds > base
    assert expected.estimate(one, find_pod("v5p-1024*4")).seconds > base


def test_a_chip_without_published_runs_has_a_wider_range_and_says_so():
    one = expected.causes(CONFIG, DONE, (0.1, 0.0, 0.1), parse("h100:8x8"))
    known, unknown = (expected.estimate(one, parse(f"{chip}:8x8")) for chip in ("h100", "b200"))
    assert unknown.most / unknown.seconds > known.most / known.seconds
    assert known.least < known.seconds < known.most
    assert "none of them on b200" in unknown.basis
    assert "26 of them" not in unknown.basis


def test_every_published_run_says_where_it_is_from_and_fits_its_pod():
    runs = expected.published_runs()
    assert len({run["id"] for run in runs}) == len(runs)
    for run in runs:
        assert run["url"].startswith("https://"), run["id"]
        assert run["source"], run["id"]
        mesh = run["mesh"]
        assert mesh["replica"] * mesh["fsdp"] * mesh["tensor"] == parse(run["topology"]).num_devices, run["id"]
    kinds = Counter(parse(run["topology"]).accelerator.name for run in runs)
    assert {"v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100"} <= set(kinds)
    for family in ("tpu", "hopper", "ampere"):
        assert expected.calibration(family).num_runs.items() <= kinds.items()


@pytest.mark.parametrize("family", ["tpu", "hopper", "ampere"])
def test_the_stored_constants_are_those_of_a_fit_and_their_errors_those_of_runs_left_out(calibrate, family):
    everything = [calibrate.make_run(row) for row in expected.published_runs()]
    runs = [run for run in everything if run.family == family]
    stored = expected.calibration(family)
    assert calibrate.fit(runs, calibrate.fit_slowdown(runs)) == pytest.approx(stored.constants, abs=1e-3)
    by_shape = calibrate.predict(runs, "model")
    assert calibrate.errors(runs, by_shape) == pytest.approx(stored.shape_errors, abs=1e-3)
    within = [abs(by_shape[run.id] / run.measured - 1) <= stored.shape_errors[1] + 1e-3 for run in runs]
    assert all(within)


def test_the_goal_of_the_fit_holds_on_tpus():
    mean, largest = expected.calibration("tpu").shape_errors
    assert mean <= 0.07
    assert largest <= 0.20
