"""Runs in processes of their own: stopped, killed, out of disk, continued on another number of processes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import pytest

from cm3leon_jax.progress import read_step_log
from tests.launched import ended, start, wait_until

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.corpus = dict(path="{corpus}")
    config.vocabulary = dict(path="{folder}/vocabulary")
    config.image_tokenizer = dict(
        resolution=8, in_channels=1, base_channels=4, channel_multipliers=(1, 2), num_res_blocks=1,
        latent_channels=4, embedding_dim=3, codebook_size=32)
    config.model = dict(num_layers=2, model_dim=32, num_heads=4, compute_dtype="float32", remat="none")
    config.batch = dict(batch_size=8, sequence_length=48)
    config.distributed = dict(initialization_seconds=60, heartbeat_seconds=10)
    config.optimizer = dict(peak_learning_rate=3e-3, warmup_steps=10)
    config.train = dict(
        num_tokens=8 * 48 * 120, log_every=1, save_every=10, eval_every=0, sample_every=0,
        compilation_cache="{folder}/cache")
    return config
"""
NUM_DEVICES, NUM_STEPS = 4, 120


@dataclass
class Run:
    """`cm3leon train` on four virtual devices, however many processes they belong to."""

    config: Path
    workdir: Path
    processes: list[Popen]

    def start(self, num_processes: int, *arguments: str) -> list[Popen]:
        command = ["train", f"--config={self.config}", f"--workdir={self.workdir}", *arguments]
        started = start(command, num_processes, NUM_DEVICES // num_processes)
        self.processes.extend(started)
        return started

    def lines(self) -> list[dict]:
        return read_step_log(self.workdir / "metrics.jsonl")

    def complete_steps(self) -> list[Path]:
        return [folder for folder in (self.workdir / "checkpoints").iterdir() if folder.name.isdigit()]

    def wait_for_step(self, step: int, processes: list[Popen]) -> None:
        wait_until(lambda: any(line["step"] >= step for line in self.lines()), processes[0])
        assert all(process.poll() is None for process in processes)


@pytest.fixture
def run(tmp_path, corpus, vocabulary):
    vocabulary.save(tmp_path / "vocabulary")
    config = tmp_path / "small.py"
    config.write_text(CONFIG.replace("{corpus}", str(corpus.path)).replace("{folder}", str(tmp_path)))
    processes: list[Popen] = []
    yield lambda name: Run(config, tmp_path / name, processes)
    for process in processes:
        process.kill()
        process.wait()


def codes(found: list[tuple[int, str]]) -> list[int]:
    return [code for code, _ in found]


@pytest.mark.slow
def test_resume_after_sigterm_and_kills_on_other_numbers_of_processes(run):
    whole = run("whole")
    ((code, said),) = ended(whole.start(1))
    assert code == 0, said
    broken = run("broken")

    # The tensor axis lies across both processes: each holds every row.
    processes = broken.start(2, "--config.mesh.fsdp=1", "--config.mesh.tensor=4")
    broken.wait_for_step(5, processes)
    processes[1].send_signal(signal.SIGTERM)
    found = ended(processes)
    assert codes(found) == [75, 75], found
    assert "stopped and saved at step" in found[0][1]
    stopped_at = broken.lines()[-1]["step"]

    # Copies of the parameters on both: each writes its half.
    processes = broken.start(2, "--config.mesh.replica=2", "--config.mesh.fsdp=2")
    broken.wait_for_step(stopped_at + 25, processes)
    processes[1].kill()
    killed = time.monotonic()
    found = ended(processes)
    assert codes(found) == [75, -signal.SIGKILL], found
    assert time.monotonic() - killed < 30
    assert f"continued from the checkpoint of step {stopped_at}" in found[0][1]
    newest = max(broken.complete_steps(), key=lambda folder: int(folder.name))
    written = [sum(f.stat().st_size for f in newest.glob(f"state/ocdbt.process_{i}/d/*")) for i in (0, 1)]
    assert int(newest.name) > stopped_at and 0.6 < written[0] / written[1] < 1.6

    # A stopped process cannot end by itself; the other one does.
    processes = broken.start(2)
    broken.wait_for_step(broken.lines()[-1]["step"] + 1, processes)
    processes[0].send_signal(signal.SIGSTOP)
    ((code, said),) = ended(processes[1:], 60.0)
    assert code == 75 and "start all of them again" in said
    processes[0].kill()

    ((code, said),) = ended(broken.start(1))
    assert code == 0, said
    assert [line["step"] for line in broken.lines()] == list(range(1, NUM_STEPS + 1))
    for one, other in zip(whole.lines(), broken.lines(), strict=True):
        # Sums in another order, after steps that enlarge the difference.
        for name in ("loss", "loss_text", "loss_image"):
            assert other[name] == pytest.approx(one[name], rel=5e-3), (one["step"], name)
    assert broken.lines()[-1]["seconds_lost"] > 0


@pytest.mark.slow
def test_user_error_ends_all_processes_with_2(run):
    found = ended(run("wrong").start(2, "--config.mesh.tensor=3"))
    assert codes(found) == [2, 2]
    assert all("config.mesh" in said for _, said in found)


FULL_DISK = """
mount -t tmpfs -o size=2M none "$1" || exit 99
shift
"$@"; echo "exit code $?"
mount -o remount,size=64M "$(dirname "$WORKDIR")"
"$@"; echo "exit code $?"
cp "$WORKDIR/metrics.jsonl" "$KEPT"
"""


@pytest.mark.slow
def test_full_disk_ends_a_run_and_leaves_the_last_checkpoint_good(run, tmp_path):
    # A user namespace of its own, in which anybody may mount a disk of any size.
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("unshare cannot make a mount of a small disk here")
    disk = tmp_path / "disk"
    disk.mkdir()
    workdir, kept = disk / "run", tmp_path / "metrics.jsonl"
    command = [sys.executable, "-m", "cm3leon_jax", "train", f"--config={run('').config}", f"--workdir={workdir}"]
    environment = os.environ | {"WORKDIR": str(workdir), "KEPT": str(kept), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    ended = subprocess.run(
        ["unshare", "-rm", "bash", "-c", FULL_DISK, "bash", str(disk), *command, "--config.train.keep_checkpoints=99"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    full, _, again = ended.stdout.partition("exit code 2")
    assert again, ended.stdout + ended.stderr
    assert "cm3leon train: the disk is full: free some room and run the same command again" in ended.stderr
    assert "continued from the checkpoint of step" in again and again.rstrip().endswith("exit code 0")
    assert "finished" not in full
    assert [line["step"] for line in read_step_log(kept)] == list(range(1, NUM_STEPS + 1))
