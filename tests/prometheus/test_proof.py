"""A real Prometheus scrapes a real run of five ranks: who is found, what is told, and whether dashboard and alerts get
data. ``make test-prometheus``."""

from __future__ import annotations

import getpass
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.prometheus.dashboard import alerts, queries
from tests.prometheus.server import DOCKER, Prometheus, needs_prometheus, prometheus, promtool
from tests.support import jobs
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.prometheus, needs_prometheus]

STEPS = 150
# Stages that wait 80 ms a step instead of computing, the second one 160 ms.
EMULATED = "model.args={forward: [0.03, 0.06, 0.03, 0.03], backward: [0.05, 0.1, 0.05, 0.05], batch_size: 32}"
SETTINGS = (
    *("model.name=benchmarks.emulated:stages", EMULATED, "data.name=synthetic", "data.image_size=8"),
    *("data.batch_size=32", f"steps={STEPS}", "log.every_steps=5", "checkpoint.every_steps=30"),
    *("optimizer.lr=1e-9", "optimizer.clip_norm=1", "metrics.port=0"),
)


@dataclass
class Watched:
    """What was seen of a run while it ran, at ``moment``; Prometheus still knows it."""

    server: Prometheus
    moment: float
    targets: list[dict[str, Any]]
    texts: dict[str, str]  # what each rank told, by its number
    run_dir: Path

    def query(self, expression: str) -> list[dict[str, Any]]:
        return self.server.query(expression, self.moment)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    run_dir = folder / "five-ranks"
    run_dir.mkdir()
    with prometheus(folder, [run_dir / "prometheus.json"]) as server:
        command = [sys.executable, "-m", "bllpipe.launch", *jobs.words(run_dir, *SETTINGS)]
        job = subprocess.Popen(
            command, cwd=jobs.REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            wait_until(lambda: job.poll() is not None or has_come_far(server))
            assert job.poll() is None, job.communicate()[0]
            yield Watched(server, time.time(), active(server), asked(run_dir), run_dir)
            assert job.wait(timeout=120) == 0, job.communicate()[0]
        finally:
            job.terminate()
            job.communicate(timeout=60)


def has_come_far(server: Prometheus) -> bool:
    """All ranks are at step 70, and every one was scraped for ten seconds."""
    scraped = server.query('count_over_time(up{job="bllpipe"}[1m]) >= 10')
    return len(scraped) == 5 and len(server.query("bllpipe_step > 70")) == 8  # four blocks, four lanes


def active(server: Prometheus) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.ask("targets", state="active")["activeTargets"]
    return found


def asked(run_dir: Path) -> dict[str, str]:
    """The figures of every rank, from where its prometheus.json says."""
    texts = {}
    for group in json.loads((run_dir / "prometheus.json").read_text()):
        url = f"http://{group['targets'][0]}{group['labels']['__metrics_path__']}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            texts[group["labels"]["rank"]] = answer.read().decode()
    return texts


def test_all_five_ranks_are_found_and_up(watched: Watched) -> None:
    assert [target["health"] for target in watched.targets] == ["up"] * 5
    labels = sorted((target["labels"]["rank"], target["labels"]["role"]) for target in watched.targets)
    assert labels == [("0", "block 0"), ("1", "block 1"), ("2", "block 2"), ("3", "block 3"), ("4", "feedback")]
    assert {target["labels"]["run"] for target in watched.targets} == {"five-ranks"}
    slowest = max(float(target["lastScrapeDuration"]) for target in watched.targets)
    print(f"\nfive targets up, the slowest scrape took {slowest * 1e3:.1f} ms")


@pytest.mark.parametrize("rank", range(5))
def test_promtool_finds_no_fault_in_what_a_rank_tells(watched: Watched, rank: int) -> None:
    text = watched.texts[str(rank)]
    assert promtool("check", "metrics", text=text) == ""
    print(f"\nrank {rank}: {sum(not line.startswith('#') for line in text.splitlines())} series")


@pytest.mark.parametrize(("title", "expression"), queries(), ids=[title for title, _ in queries()])
def test_a_query_of_the_dashboard_returns_data(watched: Watched, title: str, expression: str) -> None:
    found = watched.query(expression)
    assert found, f"{title}: {expression}"
    assert not [series for series in found if series["value"][1] == "NaN"]


@pytest.mark.parametrize(("name", "expression"), alerts(), ids=[name for name, _ in alerts()])
def test_an_alert_is_evaluated_and_this_run_gives_no_reason_for_it(
    watched: Watched, name: str, expression: str
) -> None:
    found = watched.query(expression)
    assert bool(found) == (name == "BllpipeImbalance"), "the second stage takes twice as long"


def test_prometheus_has_loaded_all_alerts_and_has_trouble_with_none(watched: Watched) -> None:
    rules = [rule for group in watched.server.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule["health"] for rule in rules} == {name: "ok" for name, _ in alerts()}


def test_no_label_holds_a_host_a_user_or_a_path(watched: Watched) -> None:
    series = watched.server.ask("series", **{"match[]": '{run="five-ranks"}'})
    values = {value for labels in series for value in labels.values()}
    private = re.compile(rf"\b({re.escape(socket.gethostname())}|{re.escape(getpass.getuser())}|127\.0\.0\.1)\b|/")
    assert len(series) > 200 and not [value for value in values if private.search(value)]
    print(f"\n{len(series)} series with {len(values)} different values of labels")


def test_one_sees_which_block_is_slow(watched: Watched) -> None:
    busy = by_label(watched, "Computing A", "role")
    assert busy["block 1"] > 0.8 and max(busy[role] for role in busy if role != "block 1") < 0.7
    waiting = by_label(watched, "Share of the time that is waited A", "edge", role="block 2")
    assert max(waiting, key=lambda edge: waiting[edge]) == "alpha 1->2" and waiting["alpha 1->2"] > 0.3
    assert by_label(watched, "Messages at an edge A", "edge", role="block 1")["alpha 0->1"] >= 1, "the ring is full"
    print("\nbusy " + ", ".join(f"{role} {share:.0%}" for role, share in sorted(busy.items())))


def by_label(watched: Watched, title: str, label: str, **where: str) -> dict[str, float]:
    """The result of one of the dashboard's queries, of the series whose labels have these values."""
    found = watched.query(dict(queries())[title])
    chosen = [series for series in found if where.items() <= series["metric"].items()]
    return {series["metric"][label]: float(series["value"][1]) for series in chosen}


def test_a_run_that_has_ended_in_order_is_not_looked_for_any_more(watched: Watched) -> None:
    """This one waits for the end."""
    wait_until(lambda: jobs.read_json(watched.run_dir / "status.json")["status"] == "completed")
    assert json.loads((watched.run_dir / "prometheus.json").read_text()) == []
    wait_until(lambda: active(watched.server) == [])
    images = f"max_over_time(bllpipe_images_total{{rank='3'}}[{int(time.time() - watched.moment) + 60}s])"
    (last,) = watched.server.query(images)
    assert 0.8 * STEPS * 32 < float(last["value"][1]) <= STEPS * 32
    wait_until(lambda: not watched.server.query('ALERTS{alertname!="BllpipeImbalance"}'))


def test_a_run_that_meets_nan_raises_its_alert(tmp_path: Path) -> None:
    run_dir = tmp_path / "spoiled"
    run_dir.mkdir()
    with prometheus(tmp_path, [run_dir / "prometheus.json"]) as server:
        words = jobs.words(run_dir, *jobs.RESNET, "blocks=2", "steps=2000", "metrics.port=0")
        done = jobs.alone(words, fault="rank=1,step=300,point=loss,action=nan")
        assert (done.returncode != 0 and "NaN" in done.stderr) or "nan" in done.stderr
        wait_until(lambda: firing(server))
        assert firing(server) == {("BllpipeNotFinite", "spoiled")}


def firing(server: Prometheus) -> set[tuple[str, str]]:
    """Alert and run."""
    found = server.query('ALERTS{alertstate="firing"}')
    return {(series["metric"]["alertname"], series["metric"]["run"]) for series in found}


@pytest.mark.parametrize(("what", "file"), [("config", "prometheus.yml"), ("rules", "alerts.yml")])
def test_promtool_accepts_what_goes_into_the_container(what: str, file: str) -> None:
    assert "SUCCESS" in promtool("check", what, str(DOCKER / file))


def test_every_alert_fires_when_it_should_and_only_then() -> None:
    promtool("test", "rules", str(Path(__file__).parent / "alerts_test.yml"))
