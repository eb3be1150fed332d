"""What Prometheus is told of where ranks are, and of a run that failed."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from bllpipe.config import load_config, to_yaml
from bllpipe.engines.failure import report_failure
from bllpipe.errors import NonFiniteError
from bllpipe.tools.monitoring.exporter import Discovery, PrometheusExport, address, announce, copy_name, mark_failed
from bllpipe.training.run_directory import RunDirectory
from tests.support.metric_samples import make_source

ROLES = ["block 0", "feedback"]


def discovered(folder: Path, copy: Path | None = None) -> RunDirectory:
    """A run whose two ranks listen at two machines."""
    store: Any = dist.HashStore()
    folder.mkdir()
    directory = RunDirectory(folder)
    discovery = Discovery(store, directory, copy, make_source(folder), ROLES)
    for rank in range(2):
        announce(store, rank, f"node-{rank}:950{rank}")
    discovery.update()
    return directory


@pytest.mark.parametrize(
    ("host", "name"), [("127.0.0.1", "127.0.0.1"), ("node7.ib", "node7.ib"), ("0.0.0.0", socket.gethostname())]
)
def test_an_address_is_one_that_others_can_reach(host: str, name: str) -> None:
    assert address(host, 9502) == f"{name}:9502"


def test_labels_hold_no_host_no_user_and_no_path(tmp_path: Path) -> None:
    """Without a label instance Prometheus would make one of the address."""
    for group in discovered(tmp_path / "run").read_targets():
        labels = dict(group["labels"])
        assert labels.pop("__metrics_path__") == "/metrics/0-abc", "where to ask; no label of any figure"
        assert labels["instance"] == f"run rank {labels['rank']}"
        for private in ("node", "950", getpass.getuser(), str(tmp_path)):
            assert not any(private in value for value in labels.values())


def test_a_failure_is_told_in_the_labels_of_all_ranks(tmp_path: Path) -> None:
    copy = copy_name(str(tmp_path / "all"), "run")
    directory = discovered(tmp_path / "run", copy)
    settings = load_config(None, ["metrics.port=9500", f"metrics.discovery={tmp_path / 'all'}"])
    (directory.path / "config.yaml").write_text(to_yaml(settings))
    store: Any = dist.HashStore()
    store.set("directory", str(directory.path))
    report_failure(NonFiniteError("the loss is nan"), store, store, 1, "feedback", [PrometheusExport()])
    failed = directory.read_targets()
    assert [(group["labels"]["status"], group["labels"]["error"]) for group in failed] == [
        ("failed", "NonFiniteError"),
        ("failed", "NonFiniteError"),
    ]
    assert failed[1]["targets"] == ["node-1:9501"] and failed[1]["labels"]["role"] == "feedback"
    assert copy is not None and copy.read_text() == directory.targets.read_text()


def test_without_targets_or_a_config_there_is_nothing_to_mark(tmp_path: Path) -> None:
    mark_failed(RunDirectory(tmp_path), "WireError")
    assert list(tmp_path.iterdir()) == []
    directory = discovered(tmp_path / "run")
    before = directory.targets.read_text()
    mark_failed(directory, "WireError")  # its config.yaml is missing
    assert directory.targets.read_text() == before


@pytest.mark.parametrize("text", ["", "{", '{"targets": 1}', "null"])
def test_a_file_that_is_no_list_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "prometheus.json").write_text(text)
    assert RunDirectory(tmp_path).read_targets() == []


def test_who_begins_again_forgets_where_the_ranks_were(tmp_path: Path) -> None:
    directory = discovered(tmp_path / "run")
    directory.begin(load_config(None, []), first_step=0)
    assert not directory.targets.exists()


def test_a_file_that_could_not_be_written_is_written_when_it_can(tmp_path: Path) -> None:
    store: Any = dist.HashStore()
    directory, blocked = RunDirectory(tmp_path), tmp_path / "all"
    blocked.write_text("a file where a folder should be")
    discovery = Discovery(store, directory, blocked / "bllpipe-run.json", make_source(tmp_path), ROLES)
    announce(store, 0, "127.0.0.1:9500")
    with pytest.raises(OSError, match="all"):
        discovery.update()
    blocked.unlink()
    discovery.update()
    assert "127.0.0.1:9500" in (blocked / "bllpipe-run.json").read_text()
