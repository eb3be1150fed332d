"""The description of a cluster, a strict YAML file: devices, classes of links, jitter, price, and failures.

gpus: [4, 64, 4096]
gpus_per_node: 8
within_node: {latency_us: 5, gigabytes_per_second: 200}
between_nodes: {latency_us: 10, gigabytes_per_second: 25}
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bllpipe.config.fields import key
from bllpipe.config.loader import read_yaml
from bllpipe.config.validation import convert, field_types, shown
from bllpipe.errors import ConfigError
from bllpipe.models.partition import Link

Floats = NDArray[np.float64]
Places = NDArray[np.int64]  # numbers of GPUs, counted node by node and rack by rack
MOST_GPUS = 1 << 16


EXAMPLES = {  # of keys without a default
    "gpus": "[4, 64, 4096]",
    "gpus_per_node": "8",
    "within_node": "{latency_us: 5, gigabytes_per_second: 200}",
    "between_nodes": "{latency_us: 10, gigabytes_per_second: 25}",
    "latency_us": "10",
    "gigabytes_per_second": "25",
}


@dataclass(frozen=True, kw_only=True)
class LinkClass:
    """All links of one kind: the time from the start of a message to its first byte, one way, and the rate of one GPU
    in one direction, its share of what a node has."""

    latency_us: float = field(metadata={"least": 0})
    gigabytes_per_second: float = field(metadata={"least": 1e-6})

    def link(self) -> Link:
        return Link(self.gigabytes_per_second * 1e9, self.latency_us / 1e6)


@dataclass(frozen=True, kw_only=True)
class DeviceClass:
    memory_gib: float | None = key(None, "memory of a GPU; null: no limit", least=0.001)
    speed: float = key(1.0, "how many times as fast as the device of the profile", least=1e-6)


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Failures of nodes. A failure of any of them restarts all ranks from the last checkpoint."""

    node_mtbf_hours: float | None = key(None, "mean time between failures of one node; null: none", least=1e-6)
    restart_seconds: list[float] = key([10.0], "from a failure to the next step: one is drawn for every restart")
    checkpoint_seconds: float = key(1.0, "for which all ranks write a checkpoint instead of computing", least=0)
    checkpoint_every_seconds: float | None = key(None, "of training; null: what is best (Daly 2006)", least=1e-3)
    run_hours: float = key(24.0, "training without failures, of which goodput is predicted", least=0.01)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster with any of the numbers of ``gpus``."""

    gpus: list[int]
    gpus_per_node: int = field(metadata={"least": 1})
    within_node: LinkClass
    between_nodes: LinkClass
    between_racks: LinkClass | None = key(None, "links between racks; null: as between nodes")
    nodes_per_rack: int | None = key(None, "nodes of a rack; null: all of them", least=1)
    device: DeviceClass = key(DeviceClass(), "a GPU")
    batch_per_gpu: int = key(32, "images of the global batch for every GPU", least=1)
    jitter: float = key(0.0, "a pass takes up to this share more or less, uniformly distributed", least=0, most=0.99)
    handshake: bool = key(True, "a message begins when its sender knows of the receive, a latency after it was posted")
    posted_receives: int | None = key(None, "that a block posts at once on an edge; null: backend.ring", least=1)
    placement: Literal["auto", "pipeline", "block"] = key("auto", "whether a pipeline or a block fills a node")
    all_reduce: Literal["auto", "ring"] = key("auto", "auto: the faster one of a ring and of halving between nodes")
    feedback_message_us: float = key(0.0, "time of a feedback loop for the messages of one shard", least=0)
    price_per_gpu_hour: float = key(0.0, "of one GPU for an hour, in any currency", least=0)
    failures: Failures = key(Failures(), "failures of nodes")
    steps: int = key(60, "steps to simulate", least=10)
    seed: int = key(0, "of all random numbers", least=0)

    @property
    def links(self) -> tuple[Link, Link, Link]:
        """Within a node, between nodes, between racks."""
        between = self.between_nodes.link()
        return self.within_node.link(), between, self.between_racks.link() if self.between_racks else between

    @property
    def memory_bytes(self) -> float:
        return inf if self.device.memory_gib is None else self.device.memory_gib * 2**30

    def classes(self, one: Places, other: Places) -> Places:
        """The class of the links between GPUs, element by element: 0 within a node, 1 between nodes, 2 between racks.
        A GPU's link to itself counts as one within its node."""
        nodes, others = one // self.gpus_per_node, other // self.gpus_per_node
        per_rack = self.nodes_per_rack or MOST_GPUS
        found: Places = (nodes != others).astype(np.int64) + (nodes // per_rack != others // per_rack)
        return found

    def latencies(self, one: Places, other: Places) -> Floats:
        """Seconds, element by element."""
        return np.array([link.latency for link in self.links])[self.classes(one, other)]

    def transfers(self, one: Places, other: Places, num_bytes: float) -> Floats:
        """Seconds of ``num_bytes`` on the links, without their latency."""
        return np.array([num_bytes / link.bytes_per_second for link in self.links])[self.classes(one, other)]


def load_cluster(path: str) -> Cluster:
    """The cluster that the file describes; ConfigError for unknown or missing keys, wrong types and ranges."""
    cluster: Cluster = _section(Cluster, read_yaml(path), "", path)
    _check(cluster, path)
    return cluster


def _section(section: type, mapping: Any, prefix: str, path: str) -> Any:
    if not isinstance(mapping, Mapping):
        example = ", ".join(field_types(section))
        raise ConfigError(f"{path}: expected keys under {prefix.rstrip('.')}, got {shown(mapping)}; use {example}")
    types = field_types(section)
    if unknown := next((name for name in mapping if name not in types), None):
        close = difflib.get_close_matches(unknown, types, n=1)
        raise ConfigError(
            f"{path}: expected a key of a cluster, got {prefix}{unknown}; use {prefix}{close[0]}"
            if close
            else f"{path}: expected a key of a cluster, got {prefix}{unknown}; use one of {', '.join(types)}"
        )
    values = {}
    for each in dataclasses.fields(section):
        name, kind = each.name, types[each.name]
        if name not in mapping:
            if each.default is MISSING and each.default_factory is MISSING:
                raise ConfigError(f"{path}: expected {prefix}{name}, got none; use {name}: {EXAMPLES[name]}")
            continue
        value, inner = mapping[name], _section_in(kind)
        if inner is not None and not (value is None and inner is not kind):
            values[name] = _section(inner, value, f"{prefix}{name}.", path)
        else:
            values[name] = convert(value, kind, f"{path}: {prefix}{name}", each.metadata)
    return section(**values)


def _section_in(kind: Any) -> type | None:
    """The section that a key of this ``kind`` holds, be it optional."""
    return next((each for each in (kind, *getattr(kind, "__args__", ())) if dataclasses.is_dataclass(each)), None)  # type: ignore[return-value]


def _check(cluster: Cluster, path: str) -> None:
    """Raises ConfigError for what no single key shows."""
    if not cluster.gpus or not all(1 <= number <= MOST_GPUS for number in cluster.gpus):
        raise ConfigError(f"{path}: expected gpus from 1 to {MOST_GPUS:,}, got {cluster.gpus}; use gpus: [4, 64, 4096]")
    restarts = cluster.failures.restart_seconds
    if not restarts or min(restarts) < 0:
        raise ConfigError(
            f"{path}: expected failures.restart_seconds of at least 0, got {restarts}; use restart_seconds: [10]"
        )
    if cluster.between_racks is not None and cluster.nodes_per_rack is None:
        raise ConfigError(f"{path}: expected nodes_per_rack with between_racks, got none; use nodes_per_rack: 16")
