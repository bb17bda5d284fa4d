"""A function in a process of its own: its result, its error, and its end with the process that called it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cm3leon_jax.child_process import call_in_child
from cm3leon_jax.errors import UserError


def refuse(what: str) -> None:
    raise UserError(what)


def test_the_result_comes_from_another_process():
    assert call_in_child(os.getpid) != os.getpid()


def test_an_error_is_raised_here():
    with pytest.raises(UserError, match="no such corpus"):
        call_in_child(refuse, "no such corpus")


CALLER = """
import os, pathlib, time
from cm3leon_jax.child_process import call_in_child

def stay(file):
    pathlib.Path(file).with_suffix(".new").write_text(str(os.getpid()))
    pathlib.Path(file).with_suffix(".new").rename(file)
    time.sleep(1000)

if __name__ == "__main__":
    call_in_child(stay, {file!r})
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_the_process_ends_with_its_caller(number: int, tmp_path: Path):
    script, file = tmp_path / "caller.py", tmp_path / "pid"
    script.write_text(CALLER.format(file=str(file)))
    caller = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    wait_until(file.exists)
    child = int(file.read_text())
    assert is_running(child)
    caller.send_signal(number)
    caller.wait()
    wait_until(lambda: not is_running(child))


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    # One that ended remains until its new parent asks for its exit code.
    return state != "Z"


def wait_until(condition, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
