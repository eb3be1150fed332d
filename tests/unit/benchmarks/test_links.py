"""The relay that delays packets, the hosts that this machine may not have, and the table of rates over slow links."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import hosts, links, relay, report
from bllpipe.config import load_config
from tests.support import jobs

STORE = 29400  # a port whose packets do not wait


def packet(host: int, text: bytes, port: int = 5000, version: int = 4) -> bytes:
    """An IPv4 packet of TCP to 10.77.0.``host``, as far as the relay reads it."""
    head = struct.pack(">B8xB2x4s4s", 16 * version + 5, relay.TCP, bytes(4), bytes([10, 77, 0, host]))
    return head + struct.pack(">HH", port, 40000) + text


@contextmanager
def relayed(seconds: float, number: int) -> Iterator[list[socket.socket]]:
    """The devices of ``number`` hosts, which are sockets here: what they send goes through a relay."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(number)]
    for _, end in pairs:
        end.setblocking(False)
    files = [end.fileno() for _, end in pairs]
    command = [sys.executable, "-m", "benchmarks.relay", str(seconds), str(STORE), *map(str, files)]
    process = subprocess.Popen(command, pass_fds=files, cwd=jobs.REPOSITORY)
    try:
        yield [device for device, _ in pairs]
    finally:
        process.kill()
        process.wait()
        for device, end in pairs:
            device.close()
            end.close()


def test_packets_reach_their_host_in_order_and_those_of_the_store_do_not_wait() -> None:
    with relayed(0.5, 3) as (first, second, third):
        for text in (b"1", b"2"):
            first.send(packet(3, text))
        for stray in (packet(4, b"no such host"), packet(3, b"IPv6", version=6), b"short"):
            first.send(stray)
        second.send(packet(3, b"store", STORE))
        assert [third.recv(100)[-1:] for _ in range(3)] == [b"e", b"1", b"2"]


def test_a_machine_without_hosts_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert hosts.reason_against() == "only root may make network namespaces"
    assert links.main([]) == 2
    assert "only root may make network namespaces" in capsys.readouterr().err
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(hosts, "TUN", Path("/nowhere/tun"))
    assert hosts.reason_against() == "/nowhere/tun does not exist"
    monkeypatch.setattr(hosts, "TUN", Path("/"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert hosts.reason_against() == "ip and tc not found; install iproute2"


def test_a_command_that_fails_is_shown() -> None:
    with pytest.raises(RuntimeError, match="ls /nowhere: .*No such file"):
        hosts.run("ls", "/nowhere")


def test_every_cell_is_a_job_that_can_start() -> None:
    jobs_of_all = list(links.jobs_of(links.parser().parse_args([])))
    assert len(jobs_of_all) == 25 and len({job.name for job in jobs_of_all}) == 25
    for job in jobs_of_all:
        config = load_config(None, job.case.settings)
        assert config.model.args["weights"] == links.WEIGHTS
        assert links.num_steps(job, 5.0) >= 6
    deep = next(job for job in jobs_of_all if job.row == "bll-deep")
    config = load_config(None, deep.case.settings)
    assert (config.backend.ring, config.backend.in_flight, config.feedback.lag) == (4, 4, 4)


def test_the_table_is_written_from_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--rows", "bll-deep", "1f1b", "--links", "0", "50:100mbit"]
    rates = {"bll-deep 0 ms": [260.0, 258.0, 262.0], "bll-deep 50 ms 100mbit": [256.0], "1f1b 0 ms": [160.0]}
    asked_jobs = links.jobs_of(links.parser().parse_args(asked))
    found = [links.cell_of(job, rates.get(job.name, []), 5.0) for job in asked_jobs]
    path = tmp_path / "links.json"
    report.write(str(path), links.TITLE, {}, found)
    assert json.loads(path.read_text())["results"][0]["of_limit"]["n"] == 3
    assert links.main(["--show", str(path)]) == 0
    head, _, bll, pipeline = capsys.readouterr().out.splitlines()
    assert head == "| one-way delay | 0 ms | 50 ms, 100mbit |"
    assert bll == "| **BLL**, lag, ring and in_flight 4 | 97.5 % (96.8 to 98.2) | 96.0 % (96.0 to 96.0) |"
    assert pipeline == "| 1F1B, m = 8 | 60.0 % (60.0 to 60.0) | - |"
    assert links.main(["--show", str(path), "--brief"]) == 0
    assert "| **BLL**, lag, ring and in_flight 4 | 97.5 % |" in capsys.readouterr().out.splitlines()
