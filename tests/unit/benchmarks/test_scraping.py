"""What is read off jobs that are scraped: by hand, and over a real port."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scraping
from benchmarks.throughput_cases import EMULATED_BATCH
from bllpipe.tools.monitoring.exporter import Listener, registry
from tests.support.metric_samples import make_source
from tests.support.waiting import wait_until


def summary(milliseconds: float, scrapes: list[float]) -> dict[str, Any]:
    rate = EMULATED_BATCH / (milliseconds / 1e3)
    return {"images_per_second": rate, "cpu_seconds": [0.5, 1.5], "steps": 1000, "scrapes": scrapes}


def test_ratios_are_those_within_a_repetition() -> None:
    jobs = {
        "without metrics": [summary(2.0, []), summary(4.0, [])],
        "asked": [summary(2.2, [0.001, 0.003]), summary(4.2, [0.002])],
    }
    found = scraping.result("asked", jobs)
    assert found["slower_by"] == [pytest.approx(0.1), pytest.approx(0.05)]
    assert found["step_seconds"] == [pytest.approx(0.0022), pytest.approx(0.0042)]
    assert found["cpu_seconds_per_step"] == [0.002, 0.002]
    assert (found["scrape_seconds"].n, found["scrape_seconds"].median) == (3, 0.002)
    assert scraping.result("without metrics", jobs)["scrape_seconds"] is None
    assert scraping.rows([found])[0][2] == "+7.5 % (+5.0 to +10.0)"


def test_everybody_who_is_listed_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraping, "EVERY_SECONDS", 0.02)
    source = make_source(tmp_path / "run")
    listener = Listener(registry(source), "127.0.0.1", 0, source.path)
    group = {"targets": [f"127.0.0.1:{listener.port}"], "labels": {"__metrics_path__": source.path}}
    (tmp_path / "prometheus.json").write_text(json.dumps([group, group]))
    with scraping.Scraper(tmp_path / "prometheus.json") as scraper:
        scraper.start()
        wait_until(lambda: len(scraper.seconds) >= 4)
    listener.close()
