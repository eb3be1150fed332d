"""Clusters for tests of predictions."""

from __future__ import annotations

from typing import Any

from bllpipe.tools.planning.cluster.description import Cluster, LinkClass

LEAST = """\
gpus: [4, 16]
gpus_per_node: 8
within_node: {latency_us: 5, gigabytes_per_second: 200}
between_nodes: {latency_us: 10, gigabytes_per_second: 25}
"""


def link(latency_us: float, gigabytes_per_second: float) -> LinkClass:
    return LinkClass(latency_us=latency_us, gigabytes_per_second=gigabytes_per_second)


def cluster(**changed: Any) -> Cluster:
    """The cluster of LEAST, with other values."""
    least = {"gpus": [4, 16], "gpus_per_node": 8, "within_node": link(5, 200), "between_nodes": link(10, 25)}
    return Cluster(**{**least, **changed})
