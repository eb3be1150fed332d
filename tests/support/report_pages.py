"""Finished runs made by hand, and reports as a browser sees them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from bllpipe.config import load_config, to_yaml
from bllpipe.tools.analysis.report import write_report
from tests.support.drawings import Drawing

VOID = ("meta", "br")


@dataclass
class Page(HTMLParser):
    """What a browser sees: elements with their attributes, tables as rows of text, figures as captions."""

    text: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    section: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        elif tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        elif tag in ("td", "th"):
            self.tables[self.section][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[self.section][-1][-1] += data
        if self.open:
            self.words.setdefault(self.open[-1], []).append(data.replace("\N{NO-BREAK SPACE}", " "))

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]

    def drawing(self, index: int) -> Drawing:
        """One of the charts, in their order."""
        return Drawing(re.findall(r'<svg [^>]*class="chart".*?</svg>', self.text, re.DOTALL)[index])

    def drawn(self, look: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if look in (attributes.get("class") or "").split()]

    def column(self, section: str, head: str) -> list[str]:
        heads, *rows = self.tables[section]
        return [row[heads.index(head)] for row in rows]


def report(runs: Sequence[Path], out: Path) -> Page:
    write_report(runs, out)
    return Page(out.read_text(encoding="utf-8"))


def made_by_hand(
    path: Path, *settings: str, accuracy: Sequence[float] = (0.5, 0.75), lines: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """A finished run of two blocks with the figures given: 20 steps, 2 epochs."""
    path.mkdir(parents=True)
    config = load_config(None, ["blocks=2", "data.batch_size=10", *settings])
    (path / "config.yaml").write_text(to_yaml(config))
    (path / "env.json").write_text(json.dumps({"torch": "9.9", "gpus": ["H", "H"], "git": None}))
    (path / "status.json").write_text(json.dumps({"status": "completed", "step": 20}))
    found = {
        **{"steps": 20, "epochs": 2.0, "seconds": 8.0, "images_per_second": 50.0, "state_sha256": "ab" * 32},
        **{
            "test_accuracy": accuracy[-1],
            "block_accuracy": list(accuracy),
            "roles": ["block 0", "block 1", "feedback"],
        },
        "busy": [0.5, 0.25, 0.125],
        "waiting": [{"alpha 0->1": 1.0, "stats 0->2": 0.0}, {}, {"stats 0->2": 1.0, "stats 1->2": 3.0}],
    }
    (path / "summary.json").write_text(json.dumps(found))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(phase: str, step: int, block: int = 1, epoch: int = 0, **figures: float) -> dict[str, Any]:
    return {"phase": phase, "step": step, "epoch": epoch, "role": f"block {block}", **figures}
