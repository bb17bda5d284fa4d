"""metrics.jsonl stays one line a logged step, through interruptions."""

import dataclasses
import subprocess
import sys

import pytest

from cm3leon_jax.progress import read_step_log
from cm3leon_jax.training.metrics import MetricsLog, StepWork


def test_what_an_interrupted_run_wrote_past_its_checkpoint_is_dropped(tmp_path):
    log = MetricsLog(tmp_path, first_step=0)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 10})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    log = MetricsLog(tmp_path, first_step=20)
    log.write(30, {"loss": 9.0})
    log.close()
    assert read_step_log(tmp_path / "metrics.jsonl") == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 2.0},
        {"step": 30, "loss": 9.0},
    ]


def test_mfu_is_the_models_flops_over_the_peak_of_all_devices():
    work = StepWork(num_tokens=100, flops_per_token=6e9, num_devices=4, peak_flops=1e12)
    assert work.rates(seconds=0.5)["mfu"] == pytest.approx(100 * 6e9 / (0.5 * 4 * 1e12))
    assert "mfu" not in dataclasses.replace(work, peak_flops=0.0).rates(0.5)


def test_pytorch_stays_out_of_the_log(tmp_path):
    code = (
        "import sys; from pathlib import Path; from cm3leon_jax.training.metrics import MetricsLog; "
        f"log = MetricsLog(Path({str(tmp_path)!r}), 0); log.write(1, {{'loss': 1.0}}); log.close(); "
        "sys.exit('imported torch' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "tensorboard").iterdir())
