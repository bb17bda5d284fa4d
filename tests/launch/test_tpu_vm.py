"""launch/tpu_vm.sh with a stand-in for gcloud, whose workers are folders of this machine."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"

# Every TPU has the same two workers. A session of its own for what they run: it outlives gcloud.
GCLOUD = """#!/usr/bin/env bash
name=$5
[[ $4 == scp ]] && name=$6
for argument; do case $argument in
  --worker=*) workers=${{argument#*=}} ;;
  --command=*) command=${{argument#*=}} ;;
esac; done
[[ $name == slice* ]] || exit 1
[[ $workers == all ]] && workers="0 1"
case $4 in
  describe) echo 2 ;;
  scp) for worker in $workers; do cp "$5" "{root}/$worker/cm3leon.tar.gz" || exit 1; done ;;
  ssh)
    for worker in $workers; do
      cd "{root}/$worker" && HOME=$PWD setsid --wait bash -c "$command" || exit
    done ;;
esac
"""

PROGRAM = """#!/usr/bin/env bash
worker=${{PWD%/cm3leon}}; worker=${{worker##*/}}
echo "$*" >> "{root}/$worker/starts"
first() {{ [ ! -e "{root}/$worker/once" ] && touch "{root}/$worker/once"; }}
"""


@pytest.fixture
def tpu(tmp_path):
    """Starts tpu_vm.sh, with a body for the workers' cm3leon."""
    started = []

    def start(body: str, **variables: str) -> subprocess.Popen[str]:
        (tmp_path / "bin").mkdir()
        programs = {tmp_path / "bin" / "gcloud": GCLOUD.format(root=tmp_path)}
        for worker in range(2):
            folder = tmp_path / str(worker) / "cm3leon" / ".venv" / "bin"
            folder.mkdir(parents=True)
            programs[folder / "cm3leon"] = PROGRAM.format(root=tmp_path) + body
        for path, text in programs.items():
            path.write_text(text)
            path.chmod(0o755)
        ours = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TPU": "slice", "ZONE": "here", "INSTALL": "no"}
        started.append(
            subprocess.Popen(
                [LAUNCH / "tpu_vm.sh", "train", "--config=a b.py"],
                env={**os.environ, **ours, "RESTARTS": "2", "BACKOFF": "0", "GRACE": "1", **variables},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
    for number in pids(tmp_path):
        if is_alive(number):
            os.kill(number, signal.SIGKILL)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=30)
    return process.returncode, out


def starts(folder: Path) -> list[int]:
    return [len((folder / str(worker) / "starts").read_text().splitlines()) for worker in range(2)]


def pids(folder: Path) -> list[int]:
    paths = [folder / str(worker) / ".cm3leon" / "pid" for worker in range(2)]
    return [int(path.read_text()) for path in paths if path.exists()]


def is_alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


UNTIL_TERMINATED = """
trap 'echo saved >> saved; exit 75' TERM
while true; do sleep 0.05; done
"""


def test_every_worker_runs_the_command_and_the_first_is_seen(tpu, tmp_path):
    code, out = ended(tpu("echo hello from $worker"))
    assert code == 0, out
    assert out == "hello from 0\n"
    assert (tmp_path / "logs" / "process_1.log").read_text() == "hello from 1\n"
    assert (tmp_path / "0" / "starts").read_text() == "train --config=a b.py\n"


def test_slices_of_one_request_run_together(tpu, tmp_path):
    code, out = ended(tpu("exit 0", TPU="slice-0 slice-1"))
    assert code == 0, out
    # Both names are the same two folders here.
    assert starts(tmp_path) == [2, 2]


@pytest.mark.parametrize(("code", "expected"), [(75, [2, 2]), (1, [1, 1]), (2, [1, 1])])
def test_only_a_stop_is_worth_a_restart(tpu, tmp_path, code, expected):
    ended_with, out = ended(tpu(f"first && [ $worker = 1 ] && exit {code}; sleep 0.5; exit 0"))
    assert ended_with == (0 if code == 75 else code), out
    assert starts(tmp_path) == expected


def test_a_worker_that_cannot_be_reached_is_worth_a_restart(tpu, tmp_path):
    # The command ends well, and gcloud does not.
    process = tpu("first && [ $worker = 1 ] && kill -KILL $PPID; sleep 0.3; exit 0")
    code, out = ended(process)
    assert code == 0, out
    assert "process 1 ended with 75" in out and "restart 1 of 2" in out


def test_a_hung_worker_is_killed_before_the_next_attempt(tpu, tmp_path):
    body = "first || exit 0; [ $worker = 1 ] && { echo $$ > hung; trap '' TERM; sleep 30; }; sleep 0.3; exit 75"
    code, out = ended(tpu(body))
    assert code == 0, out
    hung = int((tmp_path / "1" / "cm3leon" / "hung").read_text())
    assert not is_alive(hung)
    assert starts(tmp_path) == [2, 2]


def test_a_signal_reaches_every_worker_and_nothing_is_started_again(tpu, tmp_path):
    process = tpu(UNTIL_TERMINATED, GRACE="10")
    wait_until(lambda: len(pids(tmp_path)) == 2)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    code, out = ended(process)
    assert code == 75, out
    assert starts(tmp_path) == [1, 1]
    for worker in range(2):
        assert (tmp_path / str(worker) / "cm3leon" / "saved").read_text() == "saved\n"
    assert not any(map(is_alive, pids(tmp_path)))


def test_the_checkout_is_copied_to_every_worker(tpu, tmp_path):
    # A stand-in for venv and pip, which say what they were asked.
    python = '#!/usr/bin/env bash\necho "$*" >> asked\n'
    process = tpu("exit 0", INSTALL="no")
    ended(process)
    for worker in range(2):
        path = tmp_path / str(worker) / "cm3leon" / ".venv" / "bin" / "python"
        path.write_text(python)
        path.chmod(0o755)
    process = subprocess.run(
        [LAUNCH / "tpu_vm.sh", "train"],
        env={**process_environment(tmp_path), "INSTALL": "yes"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert process.returncode == 0, process.stderr
    for worker in range(2):
        folder = tmp_path / str(worker) / "cm3leon"
        assert (folder / "setup.py").exists() and (folder / "configs" / "cm3leon_7b.py").exists()
        assert (folder / "asked").read_text() == "-m pip install --quiet -e .[tpu,data]\n"


def process_environment(folder: Path) -> dict[str, str]:
    ours = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TPU": "slice", "ZONE": "here", "GRACE": "1"}
    return {**os.environ, **ours}


@pytest.mark.parametrize(
    ("variables", "message"),
    [({"TPU": ""}, "no TPU or no ZONE"), ({"TPU": "other"}, "no TPU VM other in here"), ({"GRACE": "soon"}, "GRACE")],
)
def test_what_it_is_given_wrongly_is_said_in_a_line(tpu, variables, message):
    code, out = ended(tpu("exit 0", **variables))
    assert code == 2
    assert message in out and len(out.splitlines()) == 1
