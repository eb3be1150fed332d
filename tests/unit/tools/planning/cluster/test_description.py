"""The file of a cluster: strict, and what it says about links."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bllpipe.errors import ConfigError
from bllpipe.models.partition import Link
from bllpipe.tools.planning.cluster.description import Cluster, load_cluster
from bllpipe.tools.planning.cluster.sums import all_reduce_ways, direct_ways, sum_seconds
from tests.support.clusters import LEAST, cluster, link

REPOSITORY = Path(__file__).parents[5]


def load(tmp_path: Path, text: str) -> Cluster:
    (tmp_path / "cluster.yaml").write_text(text)
    return load_cluster(str(tmp_path / "cluster.yaml"))


def test_a_file_of_the_least(tmp_path: Path) -> None:
    found = load(tmp_path, LEAST)
    assert found.links == (Link(200e9, 5e-6), Link(25e9, 10e-6), Link(25e9, 10e-6))
    assert found.failures.node_mtbf_hours is None and found.memory_bytes == float("inf")


def test_a_file_of_all_sections(tmp_path: Path) -> None:
    more = """
        nodes_per_rack: 2
        between_racks: {latency_us: 50, gigabytes_per_second: 5}
        device: {memory_gib: 16, speed: 2}
        jitter: 0.2
        failures: {node_mtbf_hours: 100, restart_seconds: [5, 9.5]}
    """
    found = load(tmp_path, LEAST + "\n".join(line.strip() for line in more.splitlines()))
    assert found.links[2] == Link(5e9, 50e-6)
    assert found.memory_bytes == 16 * 2**30
    assert found.failures.restart_seconds == [5.0, 9.5]


@pytest.mark.parametrize("file", sorted((REPOSITORY / "docs" / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_examples_can_be_read(file: Path) -> None:
    assert load_cluster(str(file)).gpus[-1] == 4096


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gpus_per_node: 8", "", "expected gpus_per_node, got none; use gpus_per_node: 8"),
        ("gpus_per_node: 8", "gpus_pre_node: 8", "expected a key of a cluster, got gpus_pre_node; use gpus_per_node"),
        ("gpus_per_node: 8", "gpus_per_node: 8\nspin: 1", "got spin; use one of gpus, gpus_per_node, within_node"),
        ("gpus_per_node: 8", "gpus_per_node: eight", r"gpus_per_node is 'eight' \(text\); expected a whole number"),
        ("gpus_per_node: 8", "gpus_per_node: 0", "gpus_per_node is 0; expected at least 1"),
        ("latency_us: 5,", "latency_us: -1,", "within_node.latency_us is -1; expected at least 0"),
        ("latency_us: 5,", "", "expected within_node.latency_us, got none; use latency_us: 10"),
        ("{latency_us: 5, gigabytes_per_second: 200}", "fast", "expected keys under within_node, got 'fast'; use lat"),
        ("gpus: [4, 16]", "gpus: []", r"expected gpus from 1 to 65,536, got \[\]; use gpus: "),
        ("gpus: [4, 16]", "gpus: [4, 0]", r"expected gpus from 1 to 65,536, got \[4, 0\]; use gpus: "),
        (
            "gpus: [4, 16]",
            "gpus: [4]\nfailures: {restart_seconds: []}",
            r"restart_seconds of at least 0, got \[\]; use",
        ),
        (
            "gpus: [4, 16]",
            "gpus: [4]\nbetween_racks: {latency_us: 1, gigabytes_per_second: 1}",
            "expected nodes_per_rack with between_racks, got none; use nodes_per_rack: 16",
        ),
        ("gpus: [4, 16]", "gpus: [4]\nplacement: blocks", "placement is 'blocks'; .*did you mean 'block'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"cluster.yaml: .*{message}"):
        load(tmp_path, LEAST.replace(old, new))


def test_classes_of_links() -> None:
    """Two GPUs a node, two nodes a rack: GPU 1 and 0, 2, 4."""
    found = cluster(gpus_per_node=2, nodes_per_rack=2, between_racks=link(100, 1))
    others = np.array([0, 2, 4])
    assert found.classes(np.array([1, 1, 1]), others).tolist() == [0, 1, 2]
    assert found.latencies(np.array([1, 1, 1]), others).tolist() == [5e-6, 10e-6, 100e-6]
    assert found.transfers(np.array([1, 1, 1]), others, 1e9).tolist() == [1 / 200, 1 / 25, 1.0]


def test_sums_by_hand() -> None:
    """1 GB on 16 GPUs of two nodes. A ring of 30 messages of 1/16 on the slower links, each after two latencies. Or a
    ring of 14 messages of 1/8 in the nodes, and an eighth there and back between them. Or 15/16 twice, of which 8/16
    go to the other node."""
    found, places = cluster(), np.arange(16)
    ring, halving = (way.seconds(1e9) for way in all_reduce_ways(found, places))
    assert ring == pytest.approx(30 * (20e-6 + 1 / 16 / 25))
    assert halving == pytest.approx(14 * (10e-6 + 1 / 8 / 200) + 2 * 20e-6 + 1 / 8 / 25)
    (direct,) = direct_ways(found, places)
    assert direct.seconds(1e9) == pytest.approx(2 * (20e-6 + 8 / 16 / 25))
    assert sum_seconds(all_reduce_ways(found, places), 1e9) == halving
    assert len(all_reduce_ways(cluster(all_reduce="ring"), places)) == 1
    assert sum_seconds(all_reduce_ways(found, places[:1]), 1e9) == 0 == sum_seconds(direct_ways(found, places[:1]), 1e9)
