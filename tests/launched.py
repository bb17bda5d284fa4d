"""Commands as processes of their own, as a launcher starts them: one or several, joined through the environment."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def start(
    arguments: list[str],
    processes: int = 1,
    devices: int = 1,
    own: Callable[[int], Mapping[str, str]] = lambda number: {},
) -> list[subprocess.Popen]:
    """Starts `python -m cm3leon_jax ARGUMENTS` so many times, each with so many virtual CPU devices.

    `own` gives each process, by its number, variables of its own.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "SLURM_", "XLA_"))}
    environment = kept | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    started = []
    for number in range(processes):
        # A pipe that nobody reads would fill up and block its writer.
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process has ended
        process = subprocess.Popen(
            [sys.executable, "-m", "cm3leon_jax", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | ({"JAX_PROCESS_ID": str(number)} if processes > 1 else {}) | dict(own(number)),
        )
        process.stdout = output
        started.append(process)
    return started


def ended(processes: list[subprocess.Popen], seconds: float = 240.0) -> list[tuple[int, str]]:
    """The exit codes and all that was said, once all have ended; one that does not end in time is killed."""
    until = time.monotonic() + seconds
    found = []
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.seek(0)
        found.append((process.returncode, process.stdout.read()))
        process.stdout.close()
    return found


def run(arguments: list[str], processes: int = 1, devices: int = 1, seconds: float = 240.0) -> list[str]:
    """What each process said; all must end well."""
    found = ended(start(arguments, processes, devices), seconds)
    assert [code for code, _ in found] == [0] * processes, "\n".join(text for _, text in found)
    return [text for _, text in found]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 120.0) -> None:
    """Returns when something is so, or when the process has ended."""
    until = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)


def files_below(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
