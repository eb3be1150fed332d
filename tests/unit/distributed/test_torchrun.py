"""What a rank and the launcher that started it can do to each other, in real processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bllpipe import launch
from bllpipe.distributed.torchrun import (
    RankEnvironment,
    check_interfaces,
    choose_interface,
    die_with_agent,
    refused_by_gloo,
)
from bllpipe.errors import ConfigError
from tests.support import jobs
from tests.support.waiting import PATIENCE

REPOSITORY = Path(__file__).parents[3]
STARTS = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: print("ended", flush=True))
subprocess.run([sys.executable, "-c", sys.argv[1]], start_new_session=sys.argv[2] == "torchrun")
"""
FAILS = """
from bllpipe.distributed.torchrun import stop_torchrun
from bllpipe.distributed.torchrun import RankEnvironment
environment = RankEnvironment(0, 1, 0, 1, "localhost", 1, True, restarts_left={left}, has_agent={agent})
stop_torchrun(environment, {code})
"""


def environment(port: int, launcher: int | None = None) -> RankEnvironment:
    return RankEnvironment(0, 1, 0, 1, "localhost", port, True, has_agent=True, launcher=launcher)


@pytest.mark.parametrize(
    ("code", "left", "agent", "starter", "ends"),
    [
        (2, 1, True, "torchrun", True),
        (4, 3, True, "torchrun", True),
        (5, 1, True, "torchrun", True),
        (6, 1, True, "torchrun", True),
        (1, 1, True, "torchrun", False),  # may not come back
        (3, 1, True, "torchrun", False),
        (2, 0, True, "torchrun", False),  # torchrun ends by itself, and says more
        (2, 1, False, "torchrun", False),  # somebody else started it
        (2, 1, True, "script", False),
    ],
)
def test_torchrun_is_ended_when_a_restart_is_pointless(
    code: int, left: int, agent: bool, starter: str, ends: bool
) -> None:
    rank = FAILS.format(code=code, left=left, agent=agent)
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", STARTS, rank, starter]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("ended\n" if ends else "", "")


def fork_and_follow(port: int) -> int:
    """The exit code of a process that follows the agent whose store is at ``port``; 7 if it goes on."""
    child = os.fork()
    if child == 0:
        die_with_agent(environment(port))
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_rank_whose_agent_is_gone_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as store:
        port = store.getsockname()[1]
        assert fork_and_follow(port) == 7
    assert fork_and_follow(port) == 1


PRESENT = {name for _, name in socket.if_nameindex()}
LOOPBACK = next(name for name in sorted(PRESENT) if name.startswith("lo"))
IN_A_NAMESPACE = """
import torch.distributed as dist
from bllpipe.distributed.process_group import World, open_group
from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.errors import ConfigError
store = dist.HashStore()
world = World(RankEnvironment(0, 1, 0, 1, "localhost", 1, True), store, store, store, 0, 60.0)
try:
    open_group(world, use_nccl=False)
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("variable", "value", "missing"),
    [
        ("GLOO_SOCKET_IFNAME", "nope0", "nope0"),
        ("GLOO_SOCKET_IFNAME", f"{LOOPBACK},nope0", "nope0"),
        ("GLOO_SOCKET_IFNAME", f"={LOOPBACK}", f"={LOOPBACK}"),  # this is NCCL's way to write it
        ("GLOO_SOCKET_IFNAME", LOOPBACK.upper(), LOOPBACK.upper()),
        ("NCCL_SOCKET_IFNAME", "nope", "nope"),
        ("NCCL_SOCKET_IFNAME", "=l", "l"),
        ("NCCL_SOCKET_IFNAME", "ib7,ib8:4000", "ib7 or ib8"),
    ],
)
def test_an_interface_that_does_not_exist_is_named_with_those_that_do(variable: str, value: str, missing: str) -> None:
    """It once ended in a traceback of gloo, and a restart tried it again."""
    words = (
        f"^{variable} is '{re.escape(value)}' on .*, which has no interface {missing}; its interfaces are .*{LOOPBACK}"
    )
    with pytest.raises(ConfigError, match=f"{words}.*; use one .* such as {variable}=.*, or unset {variable}$"):
        check_interfaces(True, {variable: value})


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"GLOO_SOCKET_IFNAME": ""},
        {"GLOO_SOCKET_IFNAME": LOOPBACK},
        {"NCCL_SOCKET_IFNAME": "l"},  # the beginning of a name
        {"NCCL_SOCKET_IFNAME": f"={LOOPBACK}:4000"},
        {"NCCL_SOCKET_IFNAME": "nope,lo"},
        {"NCCL_SOCKET_IFNAME": "^docker"},
    ],
)
def test_interfaces_that_exist_are_taken(variables: dict[str, str]) -> None:
    check_interfaces(True, variables)


def test_without_nccl_its_variable_does_not_matter() -> None:
    check_interfaces(False, {"NCCL_SOCKET_IFNAME": "nope"})


@pytest.mark.parametrize(("value", "chosen"), [(None, LOOPBACK), ("", LOOPBACK), ("eth7", "eth7")])
def test_ranks_of_one_machine_are_connected_over_its_loopback(value: str | None, chosen: str) -> None:
    """With an empty variable gloo once listened at the address of the host's name."""
    variables = {} if value is None else {"GLOO_SOCKET_IFNAME": value}
    choose_interface(variables)
    assert variables == {"GLOO_SOCKET_IFNAME": chosen}


def test_a_transport_that_gloo_does_not_have_is_named() -> None:
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GLOO_DEVICE_TRANSPORT": "UDP"}
    command = [sys.executable, "-c", IN_A_NAMESPACE]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "GLOO_DEVICE_TRANSPORT is 'UDP', which this torch does not have; use TCP, or unset" in done.stdout
    assert refused_by_gloo("Connection refused") is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs network namespaces")
def test_an_interface_without_an_address_is_named() -> None:
    """In a new network namespace the loopback interface is there, but has none."""
    isolated = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine allows no network namespace")
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo"}
    command = [*isolated, sys.executable, "-c", IN_A_NAMESPACE]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "GLOO_SOCKET_IFNAME is 'lo' on " in done.stdout, done.stderr
    assert "whose interface lo has no address; its interfaces are lo; use one" in done.stdout


def test_the_launcher_finds_it_before_it_starts_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nope0")
    assert launch.main(["--set", "blocks=1"]) == 2
    assert capsys.readouterr().err.count("which has no interface nope0") == 1


@pytest.mark.ranks
def test_a_rank_finds_it_on_its_own_machine(tmp_path: Path) -> None:
    """With torchrun on several machines the launcher has seen only one of them. Exit code 2: it is not tried again."""
    words = jobs.words(tmp_path / "run", *jobs.SMALL, "blocks=1", "steps=2")
    done = jobs.ranks(2, words, GLOO_SOCKET_IFNAME="nope0")
    assert (done.returncode, done.stderr.count("which has no interface nope0")) == (2, 1), done.stderr
    assert jobs.read_json(tmp_path / "run" / "status.json")["status"] == "failed"


def test_ranks_whose_store_ends_with_their_attempt_are_restarted_only_where_they_resume() -> None:
    """With TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, where a restart would begin a new run in a new directory."""
    job = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    job |= {"MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_MAX_RESTARTS": "1"}
    own_store = RankEnvironment.read({**job, "TORCHELASTIC_USE_AGENT_STORE": "False"})
    assert own_store is not None
    with pytest.raises(ConfigError, match="does not know the run directory .*; use --run-dir DIR --resume auto"):
        own_store.check_restarts(resumes=False)
    own_store.check_restarts(resumes=True)
    for other in ({"TORCHELASTIC_USE_AGENT_STORE": "True"}, {"TORCHELASTIC_RESTART_COUNT": "1"}):
        found = RankEnvironment.read({**job, **other})
        assert found is not None
        found.check_restarts(resumes=False)
