"""SLURM of two nodes on this machine, without privileges and without systemd, gone without a trace afterwards."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
# Daemons are found there even where a user's PATH leaves it out.
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

# cred_expire: a requeued job waits as long as its credential lives, by default (and if this is below 5) two minutes.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=300
JobRequeue=1
BatchStartTimeout=10
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that a cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if not shutil.which(name, path=PATH)]


def wait_for(condition: Callable[[], T], seconds: float, what: str) -> T:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.25)
    return found


def parent_of(number: int) -> int:
    """The parent of a process; 0 where it is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def is_keeper(number: int) -> bool:
    """Whether a process is one by which SLURM watches over a step."""
    with suppress(OSError):
        return Path(f"/proc/{number}/comm").read_text().startswith("slurmstepd")
    return False


class Cluster:
    """Nodes n1 and n2 of one SLURM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
            "PATH": PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        for name in ("state", "spool.n1", "spool.n2"):
            (folder / name).mkdir()
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        ports = [each.getsockname()[1] for each in sockets]
        for each in sockets:
            each.close()
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, user=getpass.getuser(), ports=ports))

    def start(self) -> None:
        """Starts every daemon and waits for the nodes."""
        files = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munged.seed",
        }
        paths = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self._start("munged", "munged", "--foreground", "--force", *paths)
        wait_for((self.folder / "munge.socket").exists, 10, "munged")
        self._start("slurmctld", "slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self.start_node(node)
        self.wait_until_idle()

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node."""
        self._start(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kills all that runs on a node, none of which can tell of the others' end."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        tasks = self.processes(SLURMD_NODENAME=node)
        for number in [*filter(is_keeper, {parent_of(task) for task in tasks}), *tasks]:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def wait_until_idle(self, seconds: float = 30) -> None:
        """Waits until both nodes can take a job."""
        wait_for(lambda: self.run("sinfo", "-h", "-o", "%T %D").strip() == "idle 2", seconds, "two idle nodes")

    def run(self, *command: str, cwd: Path | None = None, **environment: str) -> str:
        """What a client of SLURM prints."""
        return subprocess.run(
            command,
            env=self.environment | environment,
            cwd=cwd,
            check=True,
            timeout=60,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job."""
        shown = self.run("scontrol", "show", "job", "--oneliner", number)
        return dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)

    def end_of(self, number: str, seconds: float) -> dict[str, str]:
        """Waits for the end of a job that does not start again."""

        def ended() -> dict[str, str] | None:
            job = self.job(number)
            over = job["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
            return job if over else None

        return wait_for(ended, seconds, f"job {number}")

    def processes(self, **variables: str) -> list[int]:
        """The processes of this cluster in whose environment these variables have these values."""
        wanted = {f"SLURM_CONF={self.folder / 'slurm.conf'}"} | {f"{name}={value}" for name, value in variables.items()}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if wanted <= set(path.read_text(errors="replace").split("\0")):
                    found.append(int(path.parent.name))
        return found

    def stop(self) -> None:
        """Ends whatever is left of the cluster and of its jobs."""
        # The daemons of nodes first: they start nothing any more.
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
            daemon.wait()
        for _ in range(20):
            left = [number for number in self.processes() if number != os.getpid()]
            if not left:
                return
            for number in left:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.2)

    def _start(self, name: str, *command: str) -> None:
        # Where the tests themselves are killed, the daemons go with them.
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster in a temporary folder."""
    # The path of munge's socket must be short.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        slurm = Cluster(Path(folder))
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()
