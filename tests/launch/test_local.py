"""launch/local.sh with a stand-in for cm3leon: when it starts again, when it stops, and what it leaves running."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

LOCAL = Path(__file__).parents[2] / "launch" / "local.sh"

# Writes a line a start, and its process id where a test may look for it.
HEADER = """#!/usr/bin/env bash
echo "$JAX_PROCESS_ID $JAX_NUM_PROCESSES $JAX_COORDINATOR_ADDRESS $*" >> starts
echo $$ > "pid_$JAX_PROCESS_ID"
first() { [ ! -e "once_$1" ] && touch "once_$1"; }
"""


@pytest.fixture
def launcher(tmp_path):
    """Starts local.sh with a body for the stand-in; ends what is left of it afterwards."""
    started = []

    def start(body: str, **variables: str) -> subprocess.Popen[str]:
        program = tmp_path / "cm3leon"
        program.write_text(HEADER + body)
        program.chmod(0o755)
        defaults = {"PROCESSES": "2", "RESTARTS": "2", "BACKOFF": "0", "GRACE": "1", "CM3LEON": str(program)}
        started.append(
            subprocess.Popen(
                [LOCAL, "train", "--config=a b.py"],
                env={**os.environ, **defaults, **variables},
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
    for number in range(2):
        if alive(tmp_path, number):
            os.kill(pid(tmp_path, number), signal.SIGKILL)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=30)
    return process.returncode, out


def starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().splitlines()


def pid(folder: Path, number: int) -> int:
    return int((folder / f"pid_{number}").read_text())


def alive(folder: Path, number: int) -> bool:
    path = folder / f"pid_{number}"
    return path.exists() and Path(f"/proc/{path.read_text().strip()}").exists()


def wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def running(folder: Path) -> bool:
    return (folder / "ready_0").exists() and (folder / "ready_1").exists()


# Runs until it is told to stop, and then saves.
UNTIL_TERMINATED = """
trap 'echo saved >> saved; exit 75' TERM
touch "ready_$JAX_PROCESS_ID"
while true; do sleep 0.05; done
"""


def test_processes_find_each_other_and_the_first_writes_here(launcher, tmp_path):
    code, out = ended(launcher('echo "hello from $JAX_PROCESS_ID"; test -t 0 && exit 1; exit 0'))
    assert code == 0
    assert out == "hello from 0\n"
    assert (tmp_path / "logs" / "process_1.log").read_text() == "hello from 1\n"
    lines = sorted(starts(tmp_path))
    (address,) = {re.fullmatch(r"[01] 2 127\.0\.0\.1:(\d+) train --config=a b\.py", line)[1] for line in lines}
    assert len(lines) == 2 and 20000 <= int(address) < 32000


def test_a_stopped_run_is_started_again_until_it_is_done(launcher, tmp_path):
    code, out = ended(launcher('first "$JAX_PROCESS_ID" && exit 75; exit 0'))
    assert code == 0
    assert "restart 1 of 2 in 0 s" in out
    assert len(starts(tmp_path)) == 4


def test_restarts_are_bounded_and_wait_longer_each_time(launcher, tmp_path):
    began = time.monotonic()
    code, out = ended(launcher("exit 75", PROCESSES="1", BACKOFF="1"))
    assert code == 75
    assert [line for line in out.splitlines() if "restart " in line] == [
        "local.sh: restart 1 of 2 in 1 s",
        "local.sh: restart 2 of 2 in 2 s",
    ]
    assert "after 2 restarts (RESTARTS)" in out
    assert len(starts(tmp_path)) == 3
    assert time.monotonic() - began > 2


def test_death_by_a_signal_is_worth_a_restart_whatever_follows_from_it(launcher, tmp_path):
    code, out = ended(
        launcher('first "$JAX_PROCESS_ID" || exit 0; [ $JAX_PROCESS_ID = 1 ] && kill -KILL $$; sleep 0.4; exit 1')
    )
    assert code == 0, out
    assert out.splitlines()[0] == "local.sh: process 1 ended with 137, see logs/process_1.log"
    assert len(starts(tmp_path)) == 4


def test_of_what_is_seen_at_one_moment_a_death_is_the_cause(launcher):
    code, out = ended(launcher('first "$JAX_PROCESS_ID" || exit 0; [ $JAX_PROCESS_ID = 1 ] && kill -KILL $$; exit 1'))
    assert code == 0, out
    assert [line for line in out.splitlines() if " ended with " in line] == [
        "local.sh: process 0 ended with 1",
        "local.sh: process 1 ended with 137, see logs/process_1.log",
    ]


@pytest.mark.parametrize("code", [1, 2])
def test_a_mistake_or_a_fault_is_not_tried_again(launcher, tmp_path, code):
    ended_with, out = ended(launcher(f"[ $JAX_PROCESS_ID = 1 ] && exit {code}; sleep 0.4; exit 75"))
    assert ended_with == code, out
    assert len(starts(tmp_path)) == 2


@pytest.mark.parametrize("how", ["kill -STOP $$", "trap '' TERM; sleep 60"])
def test_a_process_that_hangs_is_killed(launcher, tmp_path, how):
    code, out = ended(
        launcher(f'first "$JAX_PROCESS_ID" || exit 0; [ $JAX_PROCESS_ID = 1 ] && {{ {how}; }}; sleep 0.2; exit 75')
    )
    assert code == 0, out
    assert "process 1 still runs after 1 s (GRACE): killed" in out
    assert len(starts(tmp_path)) == 4


def test_what_a_process_started_ends_with_it(launcher, tmp_path):
    code, _ = ended(launcher('sleep 60 & echo $! > "pid_$JAX_PROCESS_ID"; exit 0'))
    assert code == 0
    wait_until(lambda: not alive(tmp_path, 0) and not alive(tmp_path, 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_nothing_is_started_again(launcher, tmp_path, number):
    process = launcher(UNTIL_TERMINATED)
    wait_until(lambda: running(tmp_path))
    process.send_signal(number)
    code, out = ended(process)
    assert code == 75, out
    assert (tmp_path / "saved").read_text() == "saved\n" * 2
    assert len(starts(tmp_path)) == 2


def test_a_signal_while_it_waits_to_start_again_ends_it(launcher, tmp_path):
    process = launcher("exit 75", BACKOFF="30")
    wait_until(lambda: "in 30 s" in process.stdout.readline())
    process.terminate()
    assert ended(process)[0] == 75
    assert len(starts(tmp_path)) == 2


def test_a_second_signal_kills(launcher, tmp_path):
    process = launcher('trap "touch told_$JAX_PROCESS_ID" TERM\n' + UNTIL_TERMINATED.split("\n", 2)[2])
    wait_until(lambda: running(tmp_path))
    process.terminate()
    wait_until(lambda: all((tmp_path / f"told_{number}").exists() for number in range(2)))
    process.terminate()
    assert ended(process)[0] == 75
    wait_until(lambda: not alive(tmp_path, 0) and not alive(tmp_path, 1))


def test_processes_do_not_outlive_a_killed_launcher(launcher, tmp_path):
    # One of them saves and ends, the other hangs.
    process = launcher(f"[ $JAX_PROCESS_ID = 1 ] && {{ touch ready_1; kill -STOP $$; }}\n{UNTIL_TERMINATED}")
    wait_until(lambda: running(tmp_path))
    process.kill()
    wait_until(lambda: not alive(tmp_path, 0) and not alive(tmp_path, 1))
    assert (tmp_path / "saved").read_text() == "saved\n"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PROCESSES": "two"}, "PROCESSES is 'two'"),
        ({"PROCESSES": "0"}, "PROCESSES is 0"),
        ({"CM3LEON": "/no/such/program"}, "no program /no/such/program"),
    ],
)
def test_what_it_is_given_wrongly_is_said_in_a_line(launcher, variables, message):
    code, out = ended(launcher("exit 0", **variables))
    assert code == 2
    assert message in out and len(out.splitlines()) == 1
