"""docs/monitoring.md says what the code does."""

from __future__ import annotations

from pathlib import Path

import yaml

from bllpipe.config.loader import known_keys
from bllpipe.tools.monitoring.metrics import SECTIONS, MetricDef

REPOSITORY = Path(__file__).parents[4]
TEXT = (REPOSITORY / "docs" / "monitoring.md").read_text()
HEAD = "| metric | kind | labels | meaning |\n|---|---|---|---|\n"


def row(family: MetricDef) -> str:
    return f"| `{family.name}` | {family.kind} | {', '.join(family.reading.labels)} | {family.doc} |\n"


def test_the_tables_of_metrics_are_those_of_the_code() -> None:
    for title, families in SECTIONS.items():
        table = f"### {title}\n\n{HEAD}{''.join(map(row, families))}"
        assert table in TEXT, f"docs/monitoring.md should have\n\n{table}"
    rows = [line for line in TEXT.splitlines() if line.startswith("| `bllpipe_")]
    assert len(rows) == sum(map(len, SECTIONS.values())), "and no others"


def test_every_alert_is_explained_and_no_other() -> None:
    groups = yaml.safe_load((REPOSITORY / "docker" / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    assert {line.split("`")[1] for line in TEXT.splitlines() if line.startswith("| `Bllpipe")} == alerts


def test_every_key_is_named() -> None:
    for key in known_keys():
        assert not key.startswith("metrics.") or f"`{key}`" in TEXT
