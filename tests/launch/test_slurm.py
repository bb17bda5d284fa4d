"""launch/slurm.sbatch on a SLURM of two nodes: what ends a run, and what costs it no step."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.progress import read_step_log
from examples.digits import images as digits
from tests.conftest import IMAGE_LENGTH, write_corpus
from tests.launch.slurm_cluster import Cluster, cluster, missing, wait_for

ROOT = Path(__file__).parents[2]
# Enough that a run does not end before it notices, a second or two later, that it is told to stop.
NUM_STEPS = 120
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.corpus = dict(path="{folder}/corpus")
    config.vocabulary = dict(path="{folder}/vocabulary")
    config.image_tokenizer = dict(
        resolution=8, in_channels=1, base_channels=4, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=4,
        embedding_dim=3, codebook_size=32)
    config.batch = dict(batch_size=8, sequence_length=48)
    config.model = dict(num_layers=1, model_dim=16, num_heads=2, compute_dtype="float32", remat="none")
    config.optimizer = dict(peak_learning_rate=1e-2, warmup_steps=2)
    config.train = dict(num_tokens={num_steps} * 8 * 48, log_every=1, save_every=10, eval_every=0, sample_every=0)
    config.distributed = dict(heartbeat_seconds=50)
    return config
"""
# The command, from this checkout, on four devices a process.
PROGRAM = f"""#!/usr/bin/env bash
unset XLA_FLAGS
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 PYTHONPATH={ROOT}
exec {sys.executable} -c 'import sys; from cm3leon_jax.cli import main; sys.exit(main())' "$@"
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed: no {', '.join(missing())}"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as found:
        yield found


def program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def submit(slurm: Cluster, folder: Path, command: str, *arguments: str, options=(), **environment: str) -> str:
    """Submits launch/slurm.sbatch on both nodes; returns the job's number."""
    return slurm.run(
        *("sbatch", "--parsable", "--nodes=2", "--output=%j.log", *options),
        *(str(ROOT / "launch" / "slurm.sbatch"), *arguments),
        cwd=folder,
        CM3LEON=command,
        **environment,
    ).strip()


@pytest.mark.parametrize(
    ("body", "variables", "code"),
    [
        # The second process is later to see it.
        ("sleep 0.$SLURM_PROCID; exit 2", {}, 2),
        ("exit 1", {}, 1),
        ("exit 75", {"RESTARTS": "0"}, 75),
    ],
)
def test_what_is_not_worth_a_restart_ends_the_job(slurm, tmp_path, body, variables, code):
    number = submit(slurm, tmp_path, program(tmp_path / "cm3leon", f"#!/bin/bash\n{body}\n"), "train", **variables)
    job = slurm.end_of(number, 60)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", f"{code}:0", "0")


def test_a_cancelled_job_stays_cancelled(slurm, tmp_path):
    body = "trap 'exit 75' TERM; touch started_$SLURM_PROCID; while true; do sleep 0.1; done"
    number = submit(slurm, tmp_path, program(tmp_path / "cm3leon", f"#!/bin/bash\n{body}\n"), "train")
    wait_for(lambda: len(list(tmp_path.glob("started_*"))) == 2, 60, "two processes")
    slurm.run("scancel", number)
    log = tmp_path / f"{number}.log"
    wait_for(lambda: "asked to end; srun ended with 75" in log.read_text(), 30, "the end of the script")
    job = slurm.end_of(number, 30)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, vocabulary) -> Path:
    """A folder with a config, its corpus of handwritten digits, and the command."""
    folder = tmp_path_factory.mktemp("slurm")
    documents = {}
    for split in ("train", "validation"):
        pixels, labels = digits.load(split)
        # A code is how dark a quarter of a quarter is.
        codes = pixels[:60].reshape(60, 4, 2, 4, 2).mean((2, 4)).reshape(60, IMAGE_LENGTH) // 8
        documents[split] = [
            np.concatenate(
                [
                    vocabulary.encode_text(digits.caption(int(label), index)),
                    [vocabulary.break_],
                    vocabulary.encode_image(code.astype(np.int64)),
                ]
            ).astype(np.int32)
            for index, (label, code) in enumerate(zip(labels, codes, strict=False))
        ]
    vocabulary.save(folder / "vocabulary")
    write_corpus(folder / "corpus", vocabulary, {"digits": documents})
    (folder / "tiny.py").write_text(CONFIG.format(folder=folder, num_steps=NUM_STEPS))
    program(folder / "cm3leon", PROGRAM)
    return folder


class Run:
    """A run of `train` as a job."""

    def __init__(self, slurm: Cluster, folder: Path, name: str, *options: str) -> None:
        self._slurm, self._workdir = slurm, folder / name
        arguments = ("train", "--config=tiny.py", f"--workdir={name}")
        self.number = submit(slurm, folder, str(folder / "cm3leon"), *arguments, options=options, GRACE="30")
        self.log = folder / f"{self.number}.log"

    def wait_for_step(self, step: int, restarts: int) -> None:
        """Waits until an attempt has come to a step."""
        wait_for(lambda: self.job["Restarts"] == str(restarts), 90, f"restart {restarts}, see {self.log}")
        wait_for(lambda: any(line["step"] >= step for line in self.lines), 300, f"step {step}, see {self.log}")

    @property
    def lines(self) -> list[dict[str, float]]:
        path = self._workdir / "metrics.jsonl"
        return read_step_log(path) if path.exists() else []

    @property
    def job(self) -> dict[str, str]:
        return self._slurm.job(self.number)

    def ranks(self) -> list[int]:
        """The ids of its processes, by rank."""
        step = {"SLURM_JOB_ID": self.number, "SLURM_STEP_ID": "0"}
        found = [self._slurm.processes(**step, SLURM_PROCID=str(rank)) for rank in range(2)]
        return [number for (number,) in found]

    def completed(self) -> list[dict[str, float]]:
        """What it measured, after it has ended well."""
        job = self._slurm.end_of(self.number, 400)
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), self.log.read_text()[-4000:]
        return self.lines


def measured(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """What does not depend on time."""
    return [{name: line[name] for name in ("step", "loss", "grad_norm", "learning_rate")} for line in lines]


def is_told(number: int) -> bool:
    """Whether a process that was stopped got SIGTERM: it waits for it, or went on since a SIGCONT came along."""
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except FileNotFoundError:
        return True
    status = dict(line.split(":\t", 1) for line in lines)
    return not status["State"].startswith("T") or bool(int(status["ShdPnd"], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_killed_process_a_lost_node_and_the_end_of_the_time_cost_no_step(slurm, prepared):
    whole = Run(slurm, prepared, "whole").completed()
    assert [line["step"] for line in whole] == list(range(1, NUM_STEPS + 1))

    run = Run(slurm, prepared, "interrupted", "--time=60", "--signal=TERM@180")
    run.wait_for_step(12, restarts=0)
    os.kill(run.ranks()[1], signal.SIGKILL)

    run.wait_for_step(25, restarts=1)
    assert "queued again" in run.log.read_text()
    slurm.kill_node("n2")
    wait_for(lambda: run.job["Restarts"] == "2", 120, "a requeue after the loss of a node")
    # Whichever notices first: SLURM, or the script when the other process has given this one up.
    said = run.log.read_text()
    assert "DUE TO NODE FAILURE" in said or said.count("queued again") == 2
    slurm.start_node("n2")

    # SLURM looks at the times of jobs twice a minute. Until then the processes are held, however fast they are, which
    # takes less time than they need to give each other up.
    run.wait_for_step(40, restarts=2)
    ranks = run.ranks()
    for number in ranks:
        os.kill(number, signal.SIGSTOP)
    hours, minutes, _ = run.job["RunTime"].split(":")
    limit = int(hours) * 60 + int(minutes) + 2
    slurm.run("scontrol", "update", f"JobId={run.number}", f"TimeLimit={limit}")
    wait_for(lambda: all(map(is_told, ranks)), 60, "the signal before the limit")
    for number in ranks:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGCONT)
    wait_for(lambda: run.job["Restarts"] == "3", 60, "a requeue after the signal")
    slurm.run("scontrol", "update", f"JobId={run.number}", "TimeLimit=60")

    lines = run.completed()
    assert run.job["Restarts"] == "3"
    assert "stopped and saved at step" in run.log.read_text()
    assert measured(lines) == measured(whole)
