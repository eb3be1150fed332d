"""The queries of the Grafana dashboard and of the alerts, as Prometheus gets them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from tests.prometheus.server import DOCKER

FILE = DOCKER / "grafana" / "dashboards" / "bllpipe.json"


def queries() -> list[tuple[str, str]]:
    """Title and expression of every query of every panel, with Grafana's variables filled in."""
    return [
        (f"{panel['title']} {target['refId']}", filled(target["expr"]))
        for panel in panels()
        for target in panel.get("targets", [])
    ]


def panels() -> Iterator[dict[str, Any]]:
    """Every panel, and the rows they stand in."""
    yield from json.loads(FILE.read_text())["panels"]


def filled(expression: str) -> str:
    """All runs, and rates over ten seconds."""
    return expression.replace("$__rate_interval", "10s").replace("$run", ".*")


def alerts() -> list[tuple[str, str]]:
    """Name and expression of every alert."""
    groups = yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]
