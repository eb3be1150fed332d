"""The cost of metrics for a training step when Prometheus scrapes every rank each second.

The stages take no time, so that the step is that of the engine. Three kinds of jobs are interleaved: without metrics,
with ports that are not scraped, and with ports that are. The scraper uses the same cores, as a Prometheus on the same
machine would.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import throughput
from benchmarks.report import Spread, table, write
from benchmarks.throughput_cases import EMULATED_BATCH, cases

KINDS = {"without metrics": [], "nobody asks": ["metrics.port=0"], "asked": ["metrics.port=0"]}
EVERY_SECONDS = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and prints a row a kind of jobs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scraping", description=__doc__)
    parser.add_argument("--blocks", type=int, default=4, metavar="P")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    jobs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for repetition in range(options.repeats):
        for kind in KINDS:
            jobs[kind].append(job(kind, options))
            rate = jobs[kind][-1]["images_per_second"]
            print(f"[{repetition + 1}/{options.repeats}] {kind}: {rate:.0f} images/s", flush=True)
    results = [result(kind, jobs) for kind in KINDS]
    print(table(["jobs", "ms a step", "against without", "CPU ms a step", "ms a scrape", "scrapes"], rows(results)))
    write(options.json, __doc__.splitlines()[0], vars(options), results)
    return 0


def job(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """The summary of one job, and how long every scrape of it took."""
    argv = ["--blocks", str(options.blocks), "--milliseconds", "0", "--engines", "bll"]
    overrides = [word for setting in KINDS[kind] for word in ("--set", setting)]
    (case,) = cases(throughput.parser().parse_args([*argv, *overrides]))
    with tempfile.TemporaryDirectory() as folder, Scraper(Path(folder) / "run" / "prometheus.json") as scraper:
        if kind == "asked":
            scraper.start()
        return {**throughput.run(case, options.steps, Path(folder)), "scrapes": scraper.seconds}


class Scraper:
    """Scrapes all ranks of a prometheus.json each second, one after another, as soon as the file exists."""

    def __init__(self, file: Path) -> None:
        self._file, self._over, self.seconds = file, threading.Event(), list[float]()
        self._thread = threading.Thread(target=self._run, name="scraper", daemon=True)

    def __enter__(self) -> Scraper:
        return self

    def start(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            groups = json.loads(self._file.read_text()) if self._file.exists() else []
            for group in groups:
                self._ask(group["targets"][0], group["labels"]["__metrics_path__"])

    def _ask(self, address: str, path: str) -> None:
        began = time.perf_counter()
        connection = HTTPConnection(address, timeout=5)
        try:
            connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
            connection.getresponse().read()
            self.seconds.append(time.perf_counter() - began)
        except OSError:  # the job has ended
            return
        finally:
            connection.close()


def result(kind: str, jobs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians over the jobs, ratios within each repetition."""
    own, scrapes = jobs[kind], [seconds for job in jobs[kind] for seconds in job["scrapes"]]
    steps, without = step_seconds(own), step_seconds(jobs["without metrics"])
    ratios = [mine / other - 1 for mine, other in zip(steps, without, strict=True)]
    return {
        "jobs": kind,
        "step_seconds": steps,
        "slower_by": ratios,
        "cpu_seconds_per_step": [sum(job["cpu_seconds"]) / job["steps"] for job in own],
        "scrape_seconds": Spread.of(scrapes) if scrapes else None,
    }


def step_seconds(jobs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of every job, in steady state."""
    return [EMULATED_BATCH / float(job["images_per_second"]) for job in jobs]


def rows(results: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    """The table's rows."""
    return [
        [
            each["jobs"],
            thousandths(each["step_seconds"]),
            f"{100 * median(each['slower_by']):+.1f} % "
            f"({100 * min(each['slower_by']):+.1f} to {100 * max(each['slower_by']):+.1f})",
            thousandths(each["cpu_seconds_per_step"]),
            f"{1e3 * each['scrape_seconds'].median:.1f}" if each["scrape_seconds"] else "-",
            each["scrape_seconds"].n if each["scrape_seconds"] else "-",
        ]
        for each in results
    ]


def thousandths(values: Sequence[float]) -> str:
    """Median, smallest and largest, times a thousand."""
    return f"{1e3 * median(values):.2f} ({1e3 * min(values):.2f} to {1e3 * max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
