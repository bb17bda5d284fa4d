"""What a run costs, by hand, and the bytes of a checkpoint beside what is written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.cli import main
from cm3leon_jax.commands import plan as command
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.models.config import MeshConfig, ModelConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.planning import compile as compiling
from cm3leon_jax.planning import costs
from cm3leon_jax.planning.costs import Rates, run_costs
from cm3leon_jax.planning.goodput import expected_goodput
from cm3leon_jax.planning.topology import parse
from cm3leon_jax.training.step import TrainStep
from cm3leon_jax.vocabulary import Vocabulary
from tests.planning.pod_plans import make_pod_plan

PLANNED = make_pod_plan("v5p-1024")


def test_dollars_are_those_of_chip_hours():
    found = run_costs(PLANNED, Rates(price=2.0))
    assert found.dollars == pytest.approx([2.0 * 512 * 24 * days for days in PLANNED.expected_days])
    assert (found.save_seconds, found.failures) == (None, None)
    assert found.days == PLANNED.expected_days


def test_each_host_saves_its_part_and_a_failure_of_any_chip_ends_the_run():
    found = run_costs(PLANNED, Rates(2.0, 1e9, 50_000.0, 10.0))
    # 512 GiB from 128 hosts at 1 GB/s each.
    save = 4 * 2**30 / 1e9
    assert found.save_seconds == pytest.approx(save)
    assert found.failures is not None
    assert found.failures.hours_between == pytest.approx(50_000 / 512)
    interval = 1000 * PLANNED.estimate.seconds
    goodput = expected_goodput(interval, save, 600 + save, 50_000 / 512 * 3600)
    assert found.failures.goodput == pytest.approx(goodput)
    assert found.days == pytest.approx([days / goodput for days in PLANNED.expected_days])
    assert found.dollars == pytest.approx([2.0 * 512 * 24 * days for days in found.days])
    # Young's interval.
    young = (2 * save * 50_000 / 512 * 3600) ** 0.5
    assert found.failures.best_save_every == pytest.approx(young / PLANNED.estimate.seconds, rel=0.05)
    assert found.failures.best_goodput >= goodput


def test_a_run_that_always_fails_before_its_save_never_ends():
    rates = Rates(2.0, 1e9, 0.01, 10.0)
    found = run_costs(PLANNED, rates)
    assert (found.days, found.dollars) == (None, None)
    assert any("never" in line for line in costs.lines(PLANNED, rates))


def test_only_what_the_user_gave_is_said():
    shown = "\n".join(costs.lines(PLANNED, Rates()))
    assert "512 GiB" in shown
    assert "every 1,000 steps" in shown
    for word in ("goodput", "cost", "save  "):
        assert word not in shown
    everything = costs.lines(PLANNED, Rates(2.0, 1e9, 50_000.0, 10.0))
    assert max(map(len, everything)) <= 110
    for word in ("$", "goodput", "128 hosts at 1 GB/s each"):
        assert word in "\n".join(everything)


def test_the_bytes_of_a_checkpoint_are_those_that_orbax_writes(tmp_path):
    config = Config(
        image_tokenizer=VQGANConfig(resolution=16, codebook_size=64),
        batch=BatchConfig(batch_size=2, sequence_length=64),
        model=ModelConfig(num_layers=2, model_dim=128, num_heads=4, attention="xla"),
        mesh=MeshConfig(fsdp=1),
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    step = TrainStep(config, Vocabulary.train((), 300, 64, 2, progress=False), mesh)
    expected = compiling._placement(step, mesh, parse("h100:1x1"))["checkpoint_bytes"]
    assert expected > 3 * 4 * 2 * 12 * 128**2
    with Checkpoints(tmp_path / "run", keep=1) as checkpoints:
        # Random bits do not compress.
        random = np.random.default_rng(0)
        filled = jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), leaf.dtype), step.init())
        checkpoints.save(1, filled, {})
    written = sum(file.stat().st_size for file in (tmp_path / "run" / "1" / "state").rglob("*") if file.is_file())
    assert written == pytest.approx(expected, rel=0.1)


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(command, "make_plan", lambda config, size, pod, say: make_pod_plan(pod.name))
    monkeypatch.setattr(command.topology, "require_compiler", lambda pod: None)


RATES = ("--price=2", "--storage-rate=1", "--mtbf=50000")


def test_the_command_line_gives_the_rates(without_compiler, tmp_path, capsys):
    file = tmp_path / "plan.json"
    arguments = ["plan", "--config=cm3leon_350m", "--topology=v5p-1024", *RATES, "--restart=5", "--images=1000"]
    assert main([*arguments, f"--json={file}"]) == 0
    found = json.loads(file.read_text())["run"]
    assert found["rates"] == {
        "price": 2.0,
        "storage_bytes_per_second": 1e9,
        "chip_hours_between_failures": 50000.0,
        "restart_minutes": 5.0,
        "num_images": 1000,
    }
    assert found["dollars"] == pytest.approx(run_costs(PLANNED, Rates(2.0, 1e9, 50_000.0, 5.0)).dollars)
    assert costs.money(found["dollars"][1]) in capsys.readouterr().out


def test_a_comparison_has_rows_of_what_the_rates_give(without_compiler, capsys):
    pair = ["plan", "--config=cm3leon_350m", "--topology=v5p-1024,v5e-256"]
    assert main(pair) == 0
    assert "goodput" not in capsys.readouterr().out
    assert main([*pair, *RATES]) == 0
    rows = {line.split("  ")[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    found = [run_costs(make_pod_plan(name), Rates(2.0, 1e9, 50_000.0)) for name in ("v5p-1024", "v5e-256")]
    for one in found:
        assert f"{one.failures.goodput:.1%}" in rows["goodput"]
        assert costs.money(one.dollars[1]) in rows["cost"]


def test_failures_need_to_know_what_a_save_takes(without_compiler, capsys):
    assert main(["plan", "--config=cm3leon_350m", "--topology=v5p-1024", "--mtbf=50000"]) == 2
    assert "--storage-rate" in capsys.readouterr().err
