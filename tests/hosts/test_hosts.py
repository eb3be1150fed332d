"""torchrun over hosts of this machine, which are network namespaces: same bits, also when a rank is killed, and when a
host loses its power and comes back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import links
from benchmarks.hosts import INTERFACE, Network, reason_against
from tests.support import jobs
from tests.support.same_bits import metrics_without_timing, state_digest
from tests.support.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1200)]
STEPS = 250
LONG = 4 * PATIENCE  # real torchruns, of which each rank imports torch
SETTINGS = (*jobs.RESNET, "blocks=2", f"steps={STEPS}", "checkpoint.every_steps=10", "backend.timeout_seconds=20")
RETURNS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # or an agent that comes back waits in vain for an address


@pytest.fixture(scope="module", autouse=True)
def machine() -> None:
    if reason := reason_against():
        pytest.skip(f"{reason}; make test-hosts as root, on Linux with /dev/net/tun and iproute2")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs, in one process."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    jobs.in_this_process(run_dir, *SETTINGS, "engine=sequential")
    return run_dir


class Agents:
    """A torchrun on every host of ``network``, with a number of ranks each, that train together in ``run_dir``."""

    def __init__(self, network: Network, shares: Sequence[int], run_dir: Path, variables: dict[str, str]) -> None:
        self.network, self.shares, self.run_dir, self.variables = network, shares, run_dir, variables
        self.processes = {host: self.start(host) for host in range(len(shares))}

    def start(self, host: int) -> subprocess.Popen[bytes]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(self.shares)}", "--max-restarts=5"]
        torchrun += [f"--nproc_per_node={self.shares[host]}", "--rdzv_backend=c10d", "--rdzv_id=test"]
        torchrun += [f"--rdzv_endpoint={self.network.address(0)}:29400", f"--rdzv_conf=is_host={int(host == 0)}"]
        torchrun += [f"--local_addr={self.network.address(host)}", "-m", "bllpipe.launch"]
        words = jobs.words(self.run_dir, *SETTINGS, options=("--resume", "auto"))
        environment = {**os.environ, **jobs.CALM, "GLOO_SOCKET_IFNAME": INTERFACE, **self.variables}
        with self.log(host).open("ab") as log:
            command = self.network.on(host, [*torchrun, *words])
            return subprocess.Popen(command, env=environment, cwd=jobs.REPOSITORY, stdout=log, stderr=log)

    def log(self, host: int) -> Path:
        return self.run_dir.parent / f"host-{host}.log"

    def wait_for_checkpoint(self) -> None:
        wait_until(lambda: any(self.run_dir.glob("checkpoints/step-????????/manifest.json")), LONG)

    def rank_on(self, host: int) -> int:
        """The process of a rank of ``host``."""
        for process in self.network.processes(host):
            words = Path("/proc", str(process), "cmdline").read_bytes().split(b"\0")
            if b"bllpipe.launch" in words and b"torch.distributed.run" not in words:
                return process
        raise AssertionError(f"no rank on host {host}")

    def lose(self, host: int) -> None:
        """The host loses its power: nobody hears from it, not even that it is gone."""
        self.network.unplug(host)
        for process in self.network.processes(host):
            os.kill(process, signal.SIGKILL)
        self.processes[host].wait()

    def bring_back(self, host: int) -> None:
        self.network.plug_in(host)
        self.processes[host] = self.start(host)

    def succeed(self) -> None:
        text = {}
        for host, process in self.processes.items():
            process.wait(LONG)
            text[host] = self.log(host).read_text()
        assert not any(process.returncode for process in self.processes.values()), text


@contextmanager
def training(
    number: int, shares: Sequence[int], tmp_path: Path, variables: dict[str, str], delay: float | None = None
) -> Iterator[Agents]:
    with Network(number, delay) as network:
        yield Agents(network, shares, tmp_path / "run", variables)


def check_same(agents: Agents, straight: Path) -> None:
    agents.succeed()
    print(f"state_sha256 {state_digest(straight)} in one process, {state_digest(agents.run_dir)} on hosts")
    assert state_digest(agents.run_dir) == state_digest(straight)
    assert metrics_without_timing(agents.run_dir) == metrics_without_timing(straight)


def resumed_from(agents: Agents) -> list[int]:
    text = "".join(agents.log(host).read_text() for host in agents.processes)
    return [int(step) for step in re.findall(r" resumes from step (\d+)", text)]


@pytest.mark.parametrize("delay", [None, 0.01], ids=["veth", "relay"])
def test_three_hosts_have_the_bits_of_one_process(tmp_path: Path, straight: Path, delay: float | None) -> None:
    with training(3, (1, 1, 1), tmp_path, {}, delay) as agents:
        check_same(agents, straight)
    assert not resumed_from(agents)


def test_a_rank_that_is_killed(tmp_path: Path, straight: Path) -> None:
    """The rank is not on the host of the store, whose torchrun only follows the restart."""
    with training(2, (1, 2), tmp_path, {}) as agents:
        agents.wait_for_checkpoint()
        os.kill(agents.rank_on(1), signal.SIGKILL)
        check_same(agents, straight)
    assert len(resumed_from(agents)) == 1


def test_a_host_that_loses_its_power_and_comes_back(tmp_path: Path, straight: Path) -> None:
    with training(3, (1, 1, 1), tmp_path, RETURNS) as agents:
        agents.wait_for_checkpoint()
        agents.lose(2)
        agents.bring_back(2)
        check_same(agents, straight)
    assert len(resumed_from(agents)) == 1


def test_the_table_of_slow_links_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One cell of it with another rate, and devices that take a fraction of the time."""
    path = tmp_path / "links.json"
    short = ["--rows", "bll-deep", "--links", "5:50mbit", "--blocks", "2", "--milliseconds", "20"]
    assert links.main([*short, "--seconds", "1", "--repeats", "1", "--json", str(path)]) == 0
    (cell,) = jobs.read_json(path)["results"]
    assert cell["rate"] == "50mbit" and len(cell["rates"]) == 1
    assert "| **BLL**, lag, ring and in_flight 4 |" in capsys.readouterr().out
