"""Seconds of the sum of gradients over replicas on GPUs of a cluster, as links that would take as long.

    ring      2 (R - 1) messages of a part in R, one after another, on the slowest link
    halving   a ring in every node, and between nodes, for the share of a GPU, recursive halving and doubling:
              2 log2(nodes) latencies, and 2 (nodes - 1) / nodes of the share (Thakur et al. 2005)
    direct    bllpipe's ordered sum: every replica sends every other one a part, and later what it has added up

With a handshake every message takes two latencies, as all replicas post their sends and receives together.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2

import numpy as np

from bllpipe.models.partition import Link
from bllpipe.tools.planning.cluster.description import Cluster, Places


def sum_seconds(ways: Sequence[Link], num_bytes: float) -> float:
    """The fastest way to sum up ``num_bytes`` of every replica; none, if there is one replica."""
    return min((link.seconds(num_bytes) for link in ways), default=0.0)


def all_reduce_ways(cluster: Cluster, places: Places) -> list[Link]:
    """A ring over GPUs in this order, and halving between nodes if the cluster allows it."""
    if len(places) == 1:
        return []
    used = cluster.classes(places, np.roll(places, 1))
    links = [cluster.links[each] for each in np.unique(used)]
    latency = max(link.latency for link in links) * (1 + cluster.handshake)
    slowest = Link(min(link.bytes_per_second for link in links), latency)
    ring = ring_of(slowest, len(places))
    nodes, counts = np.unique(places // cluster.gpus_per_node, return_counts=True)
    if cluster.all_reduce == "ring" or len(nodes) == 1:
        return [ring]
    each, between = int(counts.min()), cluster.links[int(used.max())]
    own = Link(cluster.links[0].bytes_per_second, cluster.links[0].latency * (1 + cluster.handshake))
    within = ring_of(own, each) if each > 1 else Link()
    rounds, share = ceil(log2(len(nodes))), 2 * (len(nodes) - 1) / len(nodes) / each
    rate = 1 / (share / between.bytes_per_second + 1 / within.bytes_per_second)
    return [ring, Link(rate, 2 * rounds * between.latency * (1 + cluster.handshake) + within.latency)]


def ring_of(link: Link, number: int) -> Link:
    rounds = 2 * (number - 1)
    return Link(link.bytes_per_second * number / rounds, rounds * link.latency)


def direct_ways(cluster: Cluster, places: Places) -> list[Link]:
    """Twice all parts at once, each replica on its own links."""
    if len(places) == 1:
        return []
    used = cluster.classes(places[:1], places[1:])
    latency = max(cluster.links[each].latency for each in used) * (1 + cluster.handshake)
    per_byte = max(
        float((used == each).sum()) / len(places) / link.bytes_per_second for each, link in enumerate(cluster.links)
    )
    return [Link(1 / (2 * per_byte), 2 * latency)]
