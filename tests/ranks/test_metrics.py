"""Figures for Prometheus are never worth a run, and change nothing in it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.support import jobs

pytestmark = pytest.mark.ranks
SETTINGS = (*jobs.SMALL, "blocks=2", "steps=30", "checkpoint.every_steps=10")


def test_a_run_goes_on_without_the_port_that_another_has_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = (f"metrics.port={port - 1}", f"metrics.textfile={tmp_path / 'missing'}")
        done = jobs.succeed(jobs.ranks(3, jobs.words(tmp_path / "told", *SETTINGS, *told)))
    lines = done.stderr.splitlines()
    assert sum(f"rank 1 exports no metrics: it cannot listen at 127.0.0.1:{port}" in line for line in lines) == 1
    assert sum("cannot write metrics to" in line for line in lines) == 3
    assert json.loads((tmp_path / "told" / "prometheus.json").read_text()) == []
    silent = jobs.in_this_process(tmp_path / "silent", "engine=sequential", *SETTINGS)
    assert jobs.summary(tmp_path / "told")["state_sha256"] == silent["state_sha256"]
    assert not (tmp_path / "silent" / "prometheus.json").exists()


@pytest.mark.parametrize("engine", ["sequential", "threads"])
def test_all_ranks_of_one_process_have_a_port_each_and_give_it_back(tmp_path: Path, engine: str) -> None:
    for name in ("first", "second"):
        port, held = three_free_ports()
        for server in held:
            server.close()
        jobs.in_this_process(tmp_path / name, f"engine={engine}", *SETTINGS, f"metrics.port={port}")
        assert json.loads((tmp_path / name / "prometheus.json").read_text()) == []
        for number in range(3):
            socket.create_server(("127.0.0.1", port + number)).close()


def three_free_ports() -> tuple[int, list[socket.socket]]:
    """The first of three in a row that nobody listens at, held by these servers."""
    while True:
        held = [socket.create_server(("127.0.0.1", 0))]
        first = held[0].getsockname()[1]
        try:
            held += [socket.create_server(("127.0.0.1", first + number)) for number in (1, 2)]
            return first, held
        except OSError:
            for server in held:
                server.close()
