"""A real SLURM of this machine's own: munged, slurmctld and a slurmd for each of two nodes that are both this host.

Everything it writes is in one directory, its ports are free ones, and the nodes have GPUs that are no more than names.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = ("n1", "n2")
ADDRESSES = ("127.0.0.1", "127.0.0.2")
GPUS = 8
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")
SOON_SECONDS = 10  # sooner slurmd takes a new start of a job for the one that it has just ended
KILL_SECONDS = 30  # from SIGTERM to SIGKILL
GRACE_SECONDS = 60  # from SIGTERM to the end of a job whose place a more urgent one takes
TOLD = "^bllpipe: |^placement |^replicas |resumes from|state_sha256"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in NEEDED if shutil.which(name, path=PATH) is None]


@contextmanager
def running_cluster(directory: Path) -> Iterator[Cluster]:
    """A SLURM that runs meanwhile, and leaves nothing behind. Jobs are submitted from ``directory``."""
    with TemporaryDirectory(prefix="slurm-") as name, ExitStack() as daemons:
        home = Path(name)
        home.chmod(0o755)  # or munged refuses to have its socket there
        cluster = Cluster(home, directory)
        write_configuration(home)
        daemons.enter_context(cluster.daemon("munged", *munge_options(home)))
        cluster.wait_until(lambda: (home / "munge.socket").exists(), 60)
        daemons.enter_context(cluster.daemon("slurmctld", "-D"))
        for node in NODES:
            daemons.enter_context(cluster.daemon("slurmd", "-D", "-N", node))
        cluster.wait_until(lambda: cluster.ask("sinfo", "--noheader", "--format=%T %D").stdout == "idle 2\n", 60)
        daemons.callback(cluster.cancel_all)
        yield cluster


class Cluster:
    """Commands of a SLURM whose files are in ``home``, given in ``directory``, where the output of jobs goes too."""

    def __init__(self, home: Path, directory: Path) -> None:
        self._home, self._directory = home, directory
        self._environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(home / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    @contextmanager
    def daemon(self, program: str, *options: str) -> Iterator[None]:
        """Runs one of SLURM's programs in the foreground meanwhile."""
        with (self._home / "daemons.log").open("a") as log:
            running = subprocess.Popen((program, *options), env=self._environment, stdout=log, stderr=log)
        try:
            yield
        finally:
            end(running)

    def cancel_all(self) -> None:
        """Ends all jobs, and waits until they are gone."""
        self.run("scancel", "--user", getpass.getuser())
        self.wait_until(lambda: not self.ask("squeue", "--noheader").stdout, KILL_SECONDS + 30)

    def submit(self, script: str, *arguments: str, options: Sequence[str] = (), **variables: str) -> str:
        """The number of the job."""
        command = ("sbatch", "--parsable", *options, script, *arguments)
        return self.run(*command, **variables).strip()

    def state(self, job: str) -> str:
        """``PENDING``, ``RUNNING``, ``COMPLETED`` and so on; ``JOB_ELEMENT`` names one of an array."""
        return self.fact(job, "JobState")

    def fact(self, job: str, key: str) -> str:
        """What ``scontrol show job`` says about a job, such as its ``ExitCode``."""
        text = self.ask("scontrol", "--oneliner", "show", "job", job).stdout
        return next(word.partition("=")[2] for word in text.split() if word.startswith(f"{key}="))

    def wait_for(self, job: str, state: str, seconds: float = 240) -> None:
        """Waits until the job is in ``state``; fails with what it printed when it is not, or ends otherwise."""
        self.wait_until(lambda: self.state(job) == state, seconds, while_runs=job)

    def wait_through_requeues(self, job: str, seconds: float) -> None:
        """Waits until the job is completed. When it is requeued it may begin soon, not after SLURM's two minutes."""

        def is_complete() -> bool:
            found = self.state(job)
            if found == "PENDING" and self._seconds_to_begin(job) > SOON_SECONDS:
                self.ask("scontrol", "update", f"JobId={job}", f"StartTime=now+{SOON_SECONDS}")
            return found == "COMPLETED"

        self.wait_until(is_complete, seconds, while_runs=job)

    def _seconds_to_begin(self, job: str) -> float:
        begin = datetime.fromisoformat(self.fact(job, "EligibleTime"))
        return (begin - datetime.now()).total_seconds()

    def wait_until(self, is_so: Callable[[], bool], seconds: float, while_runs: str = "") -> None:
        """Looks again and again; fails with what was printed when it never is so, or that job has ended."""
        end = time.monotonic() + seconds
        while not is_so():
            over = f"not within {seconds} s" if time.monotonic() > end else ""
            if while_runs and self.state(while_runs) in ENDED and not is_so():
                over = f"job {while_runs} is {self.state(while_runs)}"
            assert not over, f"{over}\n{self.output()}\n{self._log()}"
            time.sleep(0.2)

    def output(self, job: str = "") -> str:
        """What a job, or all of them, printed, file by file."""
        return "\n".join(f"{file.name}:\n{file.read_text()}" for file in self._outputs(job))

    def _outputs(self, job: str) -> list[Path]:
        every = sorted(self._directory.glob("bllpipe-*.out"))
        return [file for file in every if not job or re.fullmatch(rf"bllpipe-{job}(-\d+)?", file.stem)]

    def show(self, job: str) -> None:
        """Prints what matters of a job's output: where each start stopped and went on, and what came out."""
        for file in self._outputs(job):
            lines = [line for line in file.read_text().splitlines() if re.search(TOLD, line)]
            print("\n".join([f"$ grep -E {TOLD!r} {file.name}", *lines]))

    def _log(self) -> str:
        return (self._home / "daemons.log").read_text()[-4000:]

    def run(self, *command: str, **variables: str) -> str:
        """The standard output of a command, which must succeed; both are shown with the test's own output."""
        done = self.ask(*command, **variables)
        print(f"$ {shlex.join(command)}\n{done.stdout}{done.stderr}", end="")
        assert done.returncode == 0, f"exit code {done.returncode}"
        return done.stdout

    def ask(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A finished command, whether it succeeded or not."""
        environment = {**self._environment, **variables}
        return subprocess.run(
            command, env=environment, cwd=self._directory, capture_output=True, text=True, timeout=60, check=False
        )


def write_configuration(home: Path) -> None:
    """What the daemons read."""
    (home / "munge.key").write_bytes(os.urandom(1024))
    (home / "munge.key").chmod(0o600)
    (home / "slurm.conf").write_text(configuration(home, *free_ports(1 + len(NODES))))
    (home / "gres.conf").write_text(f"Name=gpu File={home}/gpu[0-{GPUS - 1}]\n")
    for number in range(GPUS):
        (home / f"gpu{number}").touch()


def configuration(home: Path, port: int, *node_ports: int) -> str:
    """slurm.conf for nodes that are this host."""
    host, user = socket.gethostname(), getpass.getuser()
    nodes = "".join(
        f"NodeName={node} NodeHostname={host} NodeAddr={address} Port={node_port} CPUs=64 Gres=gpu:{GPUS}\n"
        for node, address, node_port in zip(NODES, ADDRESSES, node_ports, strict=True)
    )
    return f"""\
ClusterName=bllpipe
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait={KILL_SECONDS}
SchedulerParameters=batch_sched_delay=0,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime={GRACE_SECONDS}
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


def munge_options(home: Path) -> list[str]:
    """A munged that shares nothing with one that the machine may have."""
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    return ["--foreground", *(f"--{option}={home}/munge.{suffix}" for option, suffix in files.items())]


def free_ports(number: int) -> list[int]:
    """Ports on which nothing listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def end(daemon: subprocess.Popen[bytes]) -> None:
    """Asks a daemon to end, and ends it."""
    daemon.terminate()
    try:
        daemon.wait(timeout=60)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait(timeout=60)
