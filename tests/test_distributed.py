import os
import signal
import socket
import subprocess
import sys

import pytest

from cm3leon_jax.distributed import Processes, named_processes
from cm3leon_jax.errors import UserError

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
STEP = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, None),
        (EXPLICIT, Processes("host:1234", 4, 3)),
        (EXPLICIT | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (STEP, Processes(None, 2, 1)),
        (STEP | {"JAX_COORDINATOR_ADDRESS": "host:1"}, Processes("host:1", 2, 1)),
        (STEP | {"SLURM_NTASKS": "1"}, None),
        # The script of a SLURM job is no step of it.
        ({"SLURM_NTASKS": "2"}, None),
        (STEP | EXPLICIT, Processes("host:1234", 4, 3)),
    ],
)
def test_the_environment_names_the_processes(environment, processes):
    assert named_processes(environment) == processes


@pytest.mark.parametrize("missing", EXPLICIT)
def test_a_part_of_the_environment_is_refused(missing):
    environment = {name: value for name, value in EXPLICIT.items() if name != missing}
    with pytest.raises(UserError, match=f"not {missing}"):
        named_processes(environment)


@pytest.mark.parametrize("wrong", [{"JAX_PROCESS_ID": "4"}, {"JAX_PROCESS_ID": "-1"}, {"JAX_NUM_PROCESSES": "two"}])
def test_numbers_that_make_no_process_are_refused(wrong):
    with pytest.raises(UserError, match="from 0 to one below"):
        named_processes(EXPLICIT | wrong)


@pytest.mark.parametrize("address", ["host", "host:", "10.0.0.1:port"])
def test_an_address_without_a_port_is_refused(address):
    with pytest.raises(UserError, match="a host and a port"):
        named_processes(EXPLICIT | {"JAX_COORDINATOR_ADDRESS": address})


def test_a_process_whose_others_never_come_says_so_and_is_worth_a_restart():
    ended = python(
        "import os; os.environ['JAX_COORDINATOR_ADDRESS'] = '127.0.0.1:1'\n"
        "from cm3leon_jax import config, distributed\n"
        "distributed.join(config.DistributedConfig(initialization_seconds=1))\n"
    )
    assert ended.returncode == 75
    assert "process 3 of 4, coordinator 127.0.0.1:1 did not find the others within 1 s" in ended.stderr


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment | EXPLICIT
    )


def test_an_abort_of_the_runtime_is_worth_a_restart():
    ended = python(
        "import ctypes, os, threading\n"
        "from cm3leon_jax import distributed\n"
        "distributed._abort_means(f'{distributed.named_processes(os.environ)} is alone')\n"
        "threading.Thread(target=ctypes.CDLL(None).abort).start()\n"
        "threading.Event().wait()\n"
    )
    assert ended.returncode == 75
    assert "process 3 of 4, coordinator host:1234 is alone" in ended.stderr
    assert "start all of them again" in ended.stderr
    assert python("import os; os.abort()").returncode == -signal.SIGABRT


def test_a_stall_is_worth_a_restart():
    ended = python(
        "import threading, time\n"
        "from cm3leon_jax.distributed import StallWatch\n"
        "watch = StallWatch(0.5)\n"
        "time.sleep(1.5)\n"
        "for _ in range(10): watch.beat(); time.sleep(0.1)\n"
        "print('beaten', flush=True)\n"
        "threading.Event().wait()\n"
    )
    assert ended.returncode == 75
    assert ended.stdout == "beaten\n"
    assert "no step for 0.5 s" in ended.stderr and 'File "<string>"' in ended.stderr


@pytest.mark.parametrize(("notes_sigterm", "code"), [(False, -signal.SIGTERM), (True, 0)])
def test_sigterm_ends_a_process_that_does_not_ask_for_it(notes_sigterm, code):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = (
        "import os, signal, sys, time\n"
        "os.environ |= {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': sys.argv[2]}\n"
        "os.environ['JAX_COORDINATOR_ADDRESS'] = sys.argv[1]\n"
        "from cm3leon_jax import config, distributed\n"
        f"distributed.join(config.DistributedConfig(initialization_seconds=60), {notes_sigterm})\n"
        "if sys.argv[2] == '0': os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(1 if sys.argv[2] == '0' else 60)\n"
        "os._exit(0)\n"
    )
    told, other = (subprocess.Popen([sys.executable, "-c", script, address, number]) for number in "01")
    assert told.wait(timeout=120) == code
    # It may have noticed that the other one is gone.
    other.kill()
    other.wait()


def test_a_command_for_one_process_refuses_a_launcher(monkeypatch, capsys):
    from cm3leon_jax.cli import main

    for name, value in EXPLICIT.items():
        monkeypatch.setenv(name, value)
    assert main(["inspect", "--config=configs/demo.py"]) == 2
    assert "runs as one process" in capsys.readouterr().err
