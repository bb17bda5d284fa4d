"""Loggers: no gaps through interruptions, what viewers read, and loggers of the user's own."""

import dataclasses
import subprocess
import sys
import time
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.training.goodput import RunClock, StepWork
from cm3leon_jax.training.loggers import LOGGERS, LoggedRun, open_loggers, tag
from cm3leon_jax.training.loss import LossSums


class Opened:
    """The default loggers of a run, all at once."""

    def __init__(self, folder, first_step=0, config=None):
        self.loggers = open_loggers(("jsonl", "tensorboard"), LoggedRun(folder, "", first_step, config or {}))

    def __getattr__(self, name):
        def every(*arguments):
            for logger in self.loggers:
                getattr(logger, name)(*arguments)

        return every


def test_metrics_past_the_checkpoint_are_dropped_at_a_resume(tmp_path):
    log = Opened(tmp_path, first_step=0)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 10})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    log = Opened(tmp_path, first_step=20)
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


def test_tensorboard_logger_imports_no_pytorch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from cm3leon_jax.training.loggers import LoggedRun, open_loggers; "
        f"log, = open_loggers(('tensorboard',), LoggedRun(Path({str(tmp_path)!r}), '', 0, {{}})); "
        "log.write(1, {'loss': 1.0}); log.close(); "
        "sys.exit('imported torch' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "tensorboard").iterdir())


def test_tensorboard_reads_curves_and_images_and_drops_what_was_done_again(tmp_path):
    from tensorflow.core.util import event_pb2
    from tensorflow.data import TFRecordDataset

    for first_step in (0, 1):
        log = Opened(tmp_path, first_step, {"train": {"seed": 7}})
        for step in (1, 2):
            if step > first_step:
                log.write(step, {"loss": step + 10.0 * first_step})
        log.write_image(2, "samples", np.full((4, 4, 3), 7, np.uint8))
        log.close()
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert len(files) == 2
    events = [event_pb2.Event.FromString(record.numpy()) for record in TFRecordDataset([str(f) for f in files])]
    assert [e.step for e in events if e.HasField("session_log")] == [1, 2]
    points = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value if v.HasField("simple_value")]
    assert points == [(1, "loss/all", 1.0), (2, "loss/all", 2.0), (2, "loss/all", 12.0)]
    texts = [(e.step, v.tensor.string_val[0]) for e in events for v in e.summary.value if "config" in v.tag]
    # Once a start, as this one had it.
    assert [step for step, _ in texts] == [0, 1]
    assert all(b'"seed": 7' in text and text.startswith(b"```json\n") for _, text in texts)
    assert sum(v.HasField("image") for e in events for v in e.summary.value) == 2


def test_nan_is_null_in_jsonl(tmp_path):
    log = Opened(tmp_path, 0)
    log.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "rate": 0.5})
    log.close()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert read_step_log(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None, "grad_norm": None, "rate": 0.5}]


def test_every_curve_has_a_tensorboard_group():
    split = LossSums(*(jnp.ones(()),) * 4).by_modality()
    held_out = {f"eval_{name}" for name in split}
    clock = RunClock()
    lap = clock.lap(1, StepWork(num_tokens=1, flops_per_token=1.0, num_devices=1, peak_flops=1.0).rates)
    names = {*split, *held_out, *lap, "learning_rate", "grad_norm", "skipped_steps"}
    tags = {name: tag(name) for name in names}
    assert len(set(tags.values())) == len(names)
    groups = {"loss", "eval_loss", "num_targets", "eval_num_targets", "optimizer", "speed", "goodput"}
    assert {one.split("/")[0] for one in tags.values()} == groups
    assert tags["loss_image"] == "loss/image" and tags["eval_loss_text"] == "eval_loss/text"
    # What others add finds a group by its first word.
    assert tag("retrieval_num_retrieved") == "retrieval/num_retrieved"


@pytest.mark.slow
def test_wandb_offline_run_has_curves_images_config_and_one_id_for_all_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for first_step in (0, 2):
        (log,) = open_loggers(("wandb",), LoggedRun(tmp_path / "demo", "encoder", first_step, {"train": {"seed": 7}}))
        log.write(first_step + 1, {"loss": 1.5, "learning_rate": 0.1})
        log.write_image(first_step + 1, "samples", np.full((4, 4, 3), 7, np.uint8))
        log.close()
    folder = tmp_path / "demo" / "wandb"
    run_id = (folder / "encoder_id").read_text()
    files = sorted(folder.glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2
    expected = (b"loss/all", b"optimizer/learning_rate", b"demo encoder", b"seed")
    for file in files:
        # wandb writes from a process of its own, and `finish` does not wait for it where it is offline.
        until = time.monotonic() + 60
        while not all(text in file.read_bytes() for text in expected) and time.monotonic() < until:
            time.sleep(0.1)
        assert all(text in file.read_bytes() for text in expected)
        assert len(list(file.parent.glob("files/media/images/samples_*.png"))) == 1


def test_wandb_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"config.train.loggers names 'wandb', .*pip install 'cm3leon_jax\[wandb\]'"):
        open_loggers(("wandb",), LoggedRun(tmp_path, "", 0, {}))


class Collected:
    """A logger of a user's own, which keeps all in a list."""

    written: ClassVar[list] = []

    def __init__(self, run):
        self.written.append(("config", run.config))

    def write(self, step, values):
        self.written.append((step, dict(values)))

    def write_image(self, step, name, pixels):
        self.written.append((step, name))

    def flush(self):
        self.written.append("flushed")

    def close(self):
        self.written.append("closed")


def test_a_logger_of_the_users_own_is_named_in_the_config(tmp_path, monkeypatch):
    # Taken out again after the test.
    monkeypatch.setitem(LOGGERS, "collected", "")
    del LOGGERS["collected"]
    LOGGERS.add("collected", f"{__name__}:Collected")
    first, second = open_loggers(("jsonl", "collected"), LoggedRun(tmp_path, "encoder", 0, {"seed": 7}))
    for log in (first, second):
        log.write(1, {"loss": 1.0})
        log.close()
    assert Collected.written == [("config", {"seed": 7}), (1, {"loss": 1.0}), "closed"]
    assert read_step_log(tmp_path / "encoder_metrics.jsonl") == [{"step": 1, "loss": 1.0}]
    with pytest.raises(UserError, match=r"config.train.loggers is 'jsonll', .*did you mean 'jsonl'"):
        open_loggers(("jsonll",), LoggedRun(tmp_path, "", 0, {}))
