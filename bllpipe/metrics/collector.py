"""A rank's figures as prometheus-client wants them: read when somebody asks, and not before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from bllpipe.metrics.families import FAMILIES, Family
from bllpipe.metrics.source import Source

KINDS: dict[str, type[CounterMetricFamily | GaugeMetricFamily]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}


class RankCollector:
    """All figures of one rank, each with ``labels`` on top of its own."""

    def __init__(self, source: Source, labels: Mapping[str, str] | None = None) -> None:
        self._source, self._labels = source, labels or {}

    def collect(self) -> Iterator[Metric]:
        """Those of which there is a value."""
        for family in FAMILIES:
            metric = self._metric(family)
            if metric.samples:
                yield metric

    def _metric(self, family: Family) -> Metric:
        metric = KINDS[family.kind](family.name, family.doc, labels=[*self._labels, *family.labels])
        for values, value in family.samples(self._source):
            metric.add_metric([*self._labels.values(), *values], value)
        return metric


def registry(source: Source, labels: Mapping[str, str] | None = None) -> CollectorRegistry:
    """A registry with nothing but the figures of ``source``."""
    made = CollectorRegistry(auto_describe=False)
    made.register(RankCollector(source, labels))
    return made
