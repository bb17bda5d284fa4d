import os
import signal
import socket
import subprocess
import sys
from random import Random

import pytest

from cm3leon_jax import distributed
from cm3leon_jax.distributed import Processes, first_node, named_processes
from cm3leon_jax.distributed_config import DistributedConfig
from cm3leon_jax.errors import UserError

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
STEP = {"SLURM_JOB_ID": "17", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, None),
        (EXPLICIT, Processes("host:1234", 4, 3)),
        (EXPLICIT | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (STEP, Processes("n1:20170", 2, 1)),
        (STEP | {"SLURM_RESTART_COUNT": "3", "SLURM_STEP_ID": "1"}, Processes("n1:20174", 2, 1)),
        (STEP | {"JAX_COORDINATOR_ADDRESS": "host:1"}, Processes("host:1", 2, 1)),
        (STEP | {"SLURM_NTASKS": "1"}, None),
        # The script of a SLURM job is no step of it.
        ({"SLURM_NTASKS": "2"}, None),
        (STEP | EXPLICIT, Processes("host:1234", 4, 3)),
    ],
)
def test_the_environment_names_the_processes(environment, processes):
    assert named_processes(environment) == processes


def bracketed(random):
    """A part of a list of nodes as SLURM writes it, and what its first node has in its place."""
    width = random.randint(1, 4)
    first = random.randrange(10 ** (width - 1), 10**width - 3)
    parts = [f"{first:0{width + 1}}"]
    parts[0] += random.choice(["", f"-{first + 2:0{width + 1}}"])
    parts += [f"{first + 3:0{width + 1}}"] * random.randrange(2)
    return f"[{','.join(parts)}]", f"{first:0{width + 1}}"


def node_list(random):
    """A list of nodes in any of SLURM's forms, and the name of its first node."""
    spelled, first = "", ""
    for _ in range(random.randint(1, 2)):
        prefix = random.choice(["n", "node-", "rack1-gpu", "gpu.eu-west-1.", "10-0-0-"])
        bracket, number = random.choice([("", ""), ("7", "7"), bracketed(random), bracketed(random)])
        spelled, first = spelled + prefix + bracket, first + prefix + number
    suffix = random.choice(["", ".cluster", ".a-b.example.org", "-ib0"])
    others = random.choice(["", ",login1", ",m[1-3]", ",a[1-2]b[3-4].c,d"])
    return spelled + suffix + others, first + suffix


def test_the_coordinator_is_the_first_node_of_any_list():
    random = Random(0)
    for _ in range(500):
        spelled, first = node_list(random)
        assert first_node(spelled) == first, spelled
    assert first_node("n[7]") == "n7"
    assert first_node("n[1-2].cluster.local,m1") == "n1.cluster.local"


def test_a_slurm_step_without_a_job_is_refused():
    with pytest.raises(UserError, match="SLURM_JOB_ID"):
        named_processes({name: value for name, value in STEP.items() if name != "SLURM_JOB_ID"})


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
        "from cm3leon_jax import distributed, distributed_config as config\n"
        "distributed.join(config.DistributedConfig(initialization_seconds=1))\n"
    )
    assert ended.returncode == 75
    assert "process 3 of 4, coordinator 127.0.0.1:1 did not find the others within 1 s" in ended.stderr


JOIN = (
    "import os, sys\n"
    "os.environ |= {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': sys.argv[2]}\n"
    "os.environ['JAX_COORDINATOR_ADDRESS'] = sys.argv[1]\n"
    "from cm3leon_jax import distributed, distributed_config as config\n"
    "distributed.join(config.DistributedConfig(initialization_seconds=60))\n"
)


def test_processes_find_each_other_whatever_proxies_there_are():
    names = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
    # Nothing listens there.
    proxies = {name: "http://127.0.0.1:9" for lower in names for name in (lower, lower.upper())}
    script = (
        "import os\n"
        f"os.environ |= {proxies}\n"
        f"{JOIN}"
        f"assert {proxies}.items() <= os.environ.items()\n"
        "distributed.barrier('here')\n"
        "distributed.hard_exit(0)\n"
    )
    address = f"127.0.0.1:{free_port()}"
    pair = [subprocess.Popen([sys.executable, "-c", script, address, number]) for number in "01"]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::")]
)
def test_a_taken_port_is_refused_by_process_0_and_is_no_reason_to_start_again(monkeypatch, family, host):
    monkeypatch.setattr(distributed, "_PORT_SECONDS", 0.3)
    with socket.socket(family) as taken:
        # As gRPC does, which would share the port with another coordinator.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind((host, 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in (EXPLICIT | {"JAX_COORDINATOR_ADDRESS": f"h:{port}", "JAX_PROCESS_ID": "0"}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"the coordinator's port {port} is in use by another program"):
            distributed.join(DistributedConfig())
    # Free again, it is not taken for taken.
    distributed._check_port(f"h:{port}")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment | EXPLICIT
    )


def test_an_abort_of_the_runtime_is_worth_a_restart():
    ended = python(
        "import ctypes, os, threading\n"
        "from cm3leon_jax import distributed, runtime_abort\n"
        "runtime_abort.restart_on_abort(f'{distributed.named_processes(os.environ)} is alone')\n"
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
        "from cm3leon_jax.distributed import Watchdog\n"
        "watch = Watchdog(0.5)\n"
        "time.sleep(1.5)\n"
        "for _ in range(10): watch.heartbeat(); time.sleep(0.1)\n"
        "print('beaten', flush=True)\n"
        "threading.Event().wait()\n"
    )
    assert ended.returncode == 75
    assert ended.stdout == "beaten\n"
    assert "no step for 0.5 s" in ended.stderr and 'File "<string>"' in ended.stderr


@pytest.mark.parametrize(("notes_sigterm", "code"), [(False, -signal.SIGTERM), (True, 0)])
def test_sigterm_ends_a_process_that_does_not_ask_for_it(notes_sigterm, code):
    address = f"127.0.0.1:{free_port()}"
    script = (
        "import os, signal, sys, time\n"
        "os.environ |= {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': sys.argv[2]}\n"
        "os.environ['JAX_COORDINATOR_ADDRESS'] = sys.argv[1]\n"
        "from cm3leon_jax import distributed, distributed_config as config\n"
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
    assert main(["inspect", "--config=examples/digits/demo.py"]) == 2
    assert "runs as one process" in capsys.readouterr().err
