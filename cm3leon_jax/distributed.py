"""Connects the processes of a run, and ends one that hangs.

The environment names the processes, by the first of these that it has:

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID    host:port of process 0, how many, which one
    srun's variables                                              a SLURM step of several tasks; process 0 is on its
                                                                  first node
    a TPU                                                         the workers of its slice, from its metadata

Without any, this process is alone.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import hashlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from cm3leon_jax.accelerators import host_has_tpu
from cm3leon_jax.distributed_config import DistributedConfig
from cm3leon_jax.errors import EXIT_RESTART, RestartError, UserError
from cm3leon_jax.files import atomic_write, remove, remove_partial_files, wait_for
from cm3leon_jax.runtime_abort import restart_on_abort
from cm3leon_jax.storage.address import shown
from cm3leon_jax.storage.mirror import refresh_shared

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# The variables that gRPC and the readers of a TPU's metadata obey.
_PROXIES = ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy")
# How long the coordinator's port may stay taken by the run's attempt before this one.
_PORT_SECONDS = 5.0
# Written by `run_on_coordinator` in the folder of what the coordinator makes.
READY_FILE = ".ready"


@dataclass(frozen=True)
class Processes:
    """The arguments of `jax.distributed.initialize`, None where JAX finds them by itself."""

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __str__(self) -> str:
        if self.num_processes is None:
            return "the processes of this TPU slice"
        return f"process {self.process_id} of {self.num_processes}, coordinator {self.coordinator_address}"


def named_processes(environment: Mapping[str, str]) -> Processes | None:
    """The processes that an environment names; None where this one is alone."""
    given = {name: environment[name] for name in _EXPLICIT if environment.get(name)}
    tasks = environment.get("SLURM_NTASKS", "") if "SLURM_STEP_NODELIST" in environment else ""
    if "JAX_NUM_PROCESSES" not in given and "JAX_PROCESS_ID" not in given and tasks:
        if tasks == "1":
            return None
        given |= {"JAX_NUM_PROCESSES": tasks, "JAX_PROCESS_ID": environment.get("SLURM_PROCID", "")}
        given.setdefault("JAX_COORDINATOR_ADDRESS", slurm_coordinator(environment))
    if not given:
        return None
    if missing := [name for name in _EXPLICIT if name not in given]:
        raise UserError(
            f"the environment sets {' and '.join(given)} but not {' or '.join(missing)}: set all three, or none for a "
            "run of one process"
        )
    address, count, index = (given[name] for name in _EXPLICIT)
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise UserError(
            f"JAX_NUM_PROCESSES is {count!r} and JAX_PROCESS_ID {index!r}: a number, and one from 0 to one below it"
        )
    if not address.rpartition(":")[2].isdecimal():
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address!r}: a host and a port, as in host:8476")
    return Processes(address, int(count), int(index)) if int(count) > 1 else None


def slurm_coordinator(environment: Mapping[str, str]) -> str:
    """Host and port of process 0 of a SLURM step: the name of its first node, and a port that depends on the job.

    JAX's own guess gets a wrong name from lists such as `n[7]` and `n[1-2].cluster`. Each attempt of a job has another
    port, in case one of the attempt before is still taken.
    """
    numbers = [environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")]
    if "SLURM_JOB_ID" not in environment or not all(number.isdecimal() for number in numbers):
        raise UserError("srun's variables name no job (SLURM_JOB_ID): set JAX_COORDINATOR_ADDRESS to host:port")
    job, restart, step = map(int, numbers)
    # Below the range of ephemeral ports.
    return f"{first_node(environment['SLURM_STEP_NODELIST'])}:{20_000 + (10 * job + restart + step) % 12_000}"


def first_node(nodes: str) -> str:
    """The first name of a list of nodes as SLURM writes it, such as `rack[1-2]n[07,09-12].cluster,login1`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())


def join(config: DistributedConfig, notes_sigterm: bool = False) -> None:
    """Connects this process with the others of its run; to be called before JAX first uses a device.

    With `notes_sigterm`, SIGTERM is only noted, for `PreemptionHandler` to read, instead of ending this process.
    """
    processes = named_processes(os.environ)
    if processes is None:
        if not host_has_tpu() or os.environ.get("JAX_PLATFORMS", "tpu") == "cpu":
            return
        processes = Processes()
    within = f"within {config.initialization_seconds} s (config.distributed.initialization_seconds)"
    restart_on_abort(
        f"{processes} did not find the others {within}: is every one started, and the coordinator reachable?"
    )
    jax.config.update("jax_enable_preemption_service", notes_sigterm)
    if processes.process_id == 0 and processes.coordinator_address:
        _check_port(processes.coordinator_address)
    try:
        with _without_proxies():
            jax.distributed.initialize(
                processes.coordinator_address,
                processes.num_processes,
                processes.process_id,
                initialization_timeout=config.initialization_seconds,
                heartbeat_timeout_seconds=config.heartbeat_seconds,
            )
    except ValueError as error:
        raise UserError(f"{processes} cannot join its run ({error}): set {', '.join(_EXPLICIT)}") from None
    except RuntimeError as error:
        raise RestartError(
            f"{processes} did not find the others ({str(error).splitlines()[0]}): see that all are started, and "
            "that the coordinator's name and port can be reached from here"
        ) from None
    restart_on_abort(
        f"{processes} was ended by JAX's runtime: most likely another one is gone, hangs or cannot be reached"
    )


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Hides the proxies of the environment, through which processes of a cluster rarely find each other.

    A connection reads them once, when it is made. Unlike an exception (`no_proxy`) this needs no coordinator's name.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.lower() in _PROXIES}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _check_port(address: str) -> None:
    """Refuses a coordinator's port on which something else listens; gRPC might share it, or only say UNKNOWN."""
    port = int((os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or address).rpartition(":")[2])
    until = time.monotonic() + _PORT_SECONDS
    while _is_taken(port):
        if time.monotonic() > until:
            raise UserError(
                f"the coordinator's port {port} is in use by another program on this host: give another port in "
                f"JAX_COORDINATOR_ADDRESS (it is {address}), or end what listens there (`ss -ltnp` shows it)"
            )
        time.sleep(0.2)


def _is_taken(port: int) -> bool:
    family, host = (socket.AF_INET6, "::") if socket.has_ipv6 else (socket.AF_INET, "")
    try:
        with socket.create_server((host, port), family=family, dualstack_ipv6=family == socket.AF_INET6):
            return False
    except OSError as error:
        # Anything else, such as a kernel without IPv6, is left to gRPC.
        return error.errno == errno.EADDRINUSE


def has_joined() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_coordinator() -> bool:
    """Whether this process writes the files that all share."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has called this; each then sees what the others wrote before, in a bucket too."""
    if jax.process_count() > 1:
        # The copies of a bucket may lie elsewhere on another host.
        multihost_utils.sync_global_devices(shown(name))
        refresh_shared()


def clear_partial_files(folder: str | Path) -> None:
    """Removes the partial files of interrupted runs from a folder, before any process writes there again."""
    if is_coordinator():
        remove_partial_files(folder)
    barrier(f"no partial files are in {folder}")


def run_on_coordinator(work: Callable[[], object], ready: Path) -> None:
    """Runs work of any length on the coordinator, while the others wait for a file that says that it is done.

    A collective would not wait for hours.
    """
    if jax.process_count() == 1:
        work()
        return
    if is_coordinator():
        remove(ready)
    barrier(f"no {ready}")
    if is_coordinator():
        work()
        with atomic_write(ready):
            """Its existence is all that it says."""
    else:
        wait_for(ready)
    barrier(f"{ready}")
    if is_coordinator():
        remove(ready)


def all_processes(value: bool) -> bool:
    """Whether `value` is true on every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(value).all())


def same_on_all_processes(text: str) -> bool:
    """Whether every process gives the same text, wherever its copies of a bucket are."""
    if jax.process_count() == 1:
        return True
    digest = np.frombuffer(hashlib.sha256(shown(text).encode()).digest(), np.uint8)
    found = multihost_utils.process_allgather(digest)
    return bool((found == found[0]).all())


def hard_exit(code: int) -> NoReturn:
    """Ends this process at once, without the shutdown in which JAX waits for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Watchdog:
    """Ends a process with `EXIT_RESTART` after too long without a call of `heartbeat`.

    JAX notices a process that is gone or stopped, but not one whose file system or collective hangs.
    """

    def __init__(self, seconds: float | None) -> None:
        """Waits at most this long between two heartbeats, from the first one on; forever for None."""
        self._last = 0.0
        self._done = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, args=(seconds,), daemon=True).start()

    def heartbeat(self) -> None:
        self._last = time.monotonic()

    def close(self) -> None:
        self._done.set()

    def _watch(self, seconds: float) -> None:
        while not self._done.wait(min(1.0, seconds / 4)):
            if self._last and time.monotonic() - self._last > seconds:
                faulthandler.dump_traceback()
                print(
                    f"cm3leon: no step for {seconds:g} s (config.distributed.stall_seconds): a process, a device or a "
                    f"file system hangs; above is where this process waits. Exit code {EXIT_RESTART}: start all "
                    "processes again to continue",
                    file=sys.stderr,
                )
                hard_exit(EXIT_RESTART)
