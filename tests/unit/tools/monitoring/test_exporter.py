"""The port, the text file and the service discovery of a rank, over real sockets and files."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from bllpipe.config.running import MetricsConfig
from bllpipe.tools.monitoring import exporter
from bllpipe.tools.monitoring.exporter import Exporter, _RequestHandler
from bllpipe.training.run_directory import RunDirectory
from tests.support.metric_samples import make_source, train, work
from tests.support.waiting import PATIENCE, wait_until

ROLES = ["block 0", "block 1", "feedback"]


@pytest.fixture(autouse=True)
def _every_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "EVERY_SECONDS", 0.02)


class Rank:
    """An exporter with what it says and where it writes."""

    def __init__(self, folder: Path, settings: MetricsConfig, rank: int = 0, store: Any = None) -> None:
        self.directory, self.warnings = RunDirectory(folder), list[str]()
        self.source = make_source(folder, rank)
        self.store: Any = store or dist.HashStore()
        self.exporter = Exporter(settings, self.source, ROLES, self.store, self.directory, self.warnings.append)

    @property
    def port(self) -> int:
        assert self.exporter._listener is not None
        return self.exporter._listener.port


@contextmanager
def running(folder: Path, rank: int = 0, store: Any = None, **settings: Any) -> Iterator[Rank]:
    """A rank's exporter, until the end of the block."""
    folder.mkdir(exist_ok=True)
    made = Rank(folder, MetricsConfig(**settings), rank, store)
    made.exporter.start()
    wait_until(lambda: made.exporter._settings.port is None or made.store.check([f"metrics/{rank}"]))
    try:
        yield made
    finally:
        made.exporter.close()


def ask(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def test_who_asks_gets_the_figures_of_this_moment(tmp_path: Path) -> None:
    with running(tmp_path / "run", port=0) as rank:
        assert 'bllpipe_step{actor="block 1"} 0.0' in ask(rank.port)
        work(rank.source, train(0), train(1))
        assert 'bllpipe_step{actor="block 1"} 1.0' in ask(rank.port, rank.source.path)
        assert rank.warnings == []


def test_another_run_is_not_found_here(tmp_path: Path) -> None:
    """Of a run that was killed Prometheus still knows the ports, at which another one may listen by now."""
    with running(tmp_path / "run", port=0) as rank, pytest.raises(urllib.error.HTTPError, match="404"):
        ask(rank.port, "/metrics/0-of-another")


def test_it_listens_at_this_machine_alone(tmp_path: Path) -> None:
    with running(tmp_path / "run", port=0) as rank:
        assert rank.exporter._listener is not None
        assert rank.exporter._listener._server.server_address[0] == "127.0.0.1"


def test_a_rank_listens_at_its_own_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running(tmp_path / "run", rank=1, port=port - 1) as rank:
        assert rank.port == port


def test_a_port_in_use_is_a_warning_and_the_others_are_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running(tmp_path / "run", port=port) as rank:
            (warning,) = rank.warnings
            assert warning == (
                f"rank 0 exports no metrics: it cannot listen at 127.0.0.1:{port} (Address already in use); the run "
                f"continues. Free the port, or use --set metrics.port=0 for any free one"
            )
            with running(tmp_path / "run", rank=1, store=rank.store, port=0) as other:
                wait_until(lambda: targets(rank) == [f"127.0.0.1:{other.port}"])


def test_an_address_that_is_not_of_this_machine_is_a_warning(tmp_path: Path) -> None:
    with running(tmp_path / "run", port=0, host="192.0.2.1") as rank:
        assert "it cannot listen at 192.0.2.1:0 (" in rank.warnings[0]


def test_a_port_is_free_again_at_the_end(tmp_path: Path) -> None:
    with running(tmp_path / "run", port=0) as rank:
        port = rank.port
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_who_asks_slowly_or_never_ends_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a row, the answer would come after half of the slow ones were given up: hours later."""
    monkeypatch.setattr(_RequestHandler, "timeout", 3600.0)
    with running(tmp_path / "run", port=0) as rank:
        slow = [socket.create_connection(("127.0.0.1", rank.port)) for _ in range(20)]
        for number, connection in enumerate(slow):
            connection.sendall(b"GET /metr" if number % 2 else b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert "bllpipe_step" in ask(rank.port)
        for connection in slow:
            connection.close()


def targets(rank: Rank) -> list[str]:
    return [address for group in rank.directory.read_targets() for address in group["targets"]]


def test_rank_0_lists_all_ranks_as_they_come(tmp_path: Path) -> None:
    shared = tmp_path / "all"
    with running(tmp_path / "run", port=0, discovery=str(shared)) as first:
        wait_until(lambda: targets(first) == [f"127.0.0.1:{first.port}"])
        with running(tmp_path / "run", rank=1, store=first.store, port=0) as second:
            wait_until(lambda: len(targets(first)) == 2)
            group = first.directory.read_targets()[1]
            assert group == {
                "targets": [f"127.0.0.1:{second.port}"],
                "labels": {
                    "run": "run",
                    "rank": "1",
                    "role": "block 1",
                    "instance": "run rank 1",
                    "__metrics_path__": "/metrics/0-abc",
                },
            }
            copy = shared / "bllpipe-run.json"
            wait_until(lambda: copy.read_text() == first.directory.targets.read_text())  # which is written first
    assert json.loads(first.directory.targets.read_text()) == json.loads(copy.read_text()) == []


def test_the_text_file_is_always_whole_and_gone_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "textfile"
    folder.mkdir()
    with running(tmp_path / "run", rank=1, textfile=str(folder)) as rank:
        file = folder / "bllpipe-run-1.prom"
        wait_until(file.exists)
        work(rank.source, train(0), train(1))
        step = 'bllpipe_step{actor="block 1",rank="1",role="block 1",run="run"} 1.0'
        wait_until(lambda: step in file.read_text())
        for _ in range(50):
            text = file.read_text()
            assert text.startswith("# HELP bllpipe_step ") and "bllpipe_build_info" in text and text.endswith("\n")
        assert rank.exporter._listener is None
    assert list(folder.iterdir()) == []


def test_a_text_file_that_cannot_be_written_is_one_warning_and_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    with running(tmp_path / "run", rank=1, textfile=str(folder)) as rank:
        wait_until(lambda: rank.warnings)
        assert f"rank 1 cannot write metrics to {folder}/bllpipe-run-1.prom." in rank.warnings[0]
        assert "(No such file or directory); the run continues, and the rank tries again every" in rank.warnings[0]
        folder.mkdir()
        wait_until((folder / "bllpipe-run-1.prom").exists)
        assert len(rank.warnings) == 1


class Gone:
    """A store whose server has died."""

    def set(self, key: str, value: str) -> None:
        raise RuntimeError("connection reset")


def test_without_the_store_the_thread_ends_silently(tmp_path: Path) -> None:
    made = Rank(tmp_path, MetricsConfig(port=0), store=Gone())
    made.exporter.start()
    made.exporter._thread.join(PATIENCE)
    assert not made.exporter._thread.is_alive() and made.warnings == []
    made.exporter.close()
