"""The command, from a config to a verdict, with the TPU's own compiler."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cm3leon_jax.cli import main

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is missing: pip install libtpu"
)
SMALL = (
    "--config=configs/cm3leon_350m.py",
    "--config.model.num_layers=2",
    "--config.model.model_dim=512",
    "--config.model.num_heads=4",
    "--config.vocabulary.num_text_tokens=1000",
)


def plan(*arguments: str) -> int:
    return main(["plan", *SMALL, *arguments])


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where the child leaves its dumps, so that a test can see that nothing stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@needs_compiler
@pytest.mark.slow
def test_a_small_model_fits_and_all_reduces_no_weight(tmp_path, scratch, capsys):
    file = tmp_path / "plan.json"
    assert plan("--topology=v5e:4x4", "--config.batch.batch_size=32", f"--json={file}") == 0
    shown = capsys.readouterr().out
    assert "fits" in shown
    assert "MFU at most" in shown
    assert all(len(line) <= 120 for line in shown.splitlines())
    found = json.loads(file.read_text())
    assert found["mesh"] == {"replica": 1, "fsdp": 16, "tensor": 1}
    assert found["memory"]["bytes"] < found["memory"]["limit_bytes"]
    kinds = {(row["kind"], row["what"]) for row in found["collectives"]}
    assert ("all-gather", "weights of the layers") in kinds
    # On so few chips gradients are passed on from neighbor to neighbor, while they are made.
    assert {
        ("collective-permute", "shards, next to their matmuls"),
        ("reduce-scatter", "gradients of the layers"),
    } & kinds
    assert not any("." in name for fault in found["faults"] for name in fault["parameters"])
    assert not list(scratch.iterdir())


@needs_compiler
@pytest.mark.slow
def test_what_does_not_fit_is_numbers(capsys):
    assert plan("--topology=v5e:2x2", "--config.batch.batch_size=4096") == 2
    shown = capsys.readouterr().out
    assert "DOES NOT FIT" in shown
    assert "of 15.75 GiB" in shown
    assert "fix: more config.train.num_microbatches" in shown


@needs_compiler
@pytest.mark.slow
def test_a_mesh_that_does_not_divide_is_one_line(capsys):
    assert plan("--topology=v5e:2x2", "--config.mesh.fsdp=3", "--config.batch.batch_size=12") == 2
    error = capsys.readouterr().err
    assert "does not make 4 devices" in error
    assert error.count("\n") == 1


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_an_interruption(number, scratch):
    arguments = [*SMALL, "--topology=v5e:4x4", "--config.batch.batch_size=32"]
    started = subprocess.Popen(
        [sys.executable, "-m", "cm3leon_jax", "plan", *arguments],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait(lambda: list(scratch.glob("*/config.json")))
    folder = next(scratch.iterdir())
    started.send_signal(number)
    started.wait(10)
    _wait(lambda: not folder.exists() and not _mentioned(folder))


def _wait(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def _mentioned(folder: Path) -> bool:
    """Whether a process runs that was started for this folder."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in file.read_bytes():
                return True
        except OSError:
            continue
    return False
