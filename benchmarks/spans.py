"""The cost of spans: the digits job with every step traced and without a trace, interleaved, and a single span alone.

The limit is 1 % of a step. The job runs in the engine ``sequential``, in one thread, where nothing hides the cost:
a step there has the spans of all ranks, and ends when the last of them is written down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Timing, table, write
from bllpipe.config import Config
from bllpipe.messages import Round
from bllpipe.training.instrument import wrap_method
from bllpipe.training.tracing import Track, record

LIMIT = 0.01  # of a step
ALONE = 20_000  # calls that are timed together


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spans", description=__doc__)
    parser.add_argument("--n", type=int, default=7, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=100, help="training steps a run, the first tenth not counted")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    options = parser.parse_args()
    results = measure(options.n, options.steps)
    print(table(["case", "a step", "spans a step"], [_row(result) for result in results[:2]]))
    print(conclusion(results))
    print(f"median of {options.n} (quartiles), the first run of each kind left out; torch {torch.__version__}")
    write(options.json, __doc__.splitlines()[0], {**vars(options), "limit": LIMIT}, results)


def measure(n: int, steps: int) -> list[dict[str, Any]]:
    """Time a step with and without a trace, and the time of one span."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    spans = 0.0
    for repetition in range(n + 1):
        # the second run finds a warmer machine, so the order alternates
        for traced in (False, True) if repetition % 2 else (True, False):
            step, found = run(steps, traced)
            seconds[traced].append(step)
            spans = max(spans, found)
    return [
        {"case": "not traced", "step": Timing.of(seconds[False][1:]), "spans": 0.0},
        {"case": "traced", "step": Timing.of(seconds[True][1:]), "spans": spans},
        {"case": "one span", "span": Timing.of(alone(n))},
        {"case": "traced - not traced, by pairs", "difference": Timing.of(_differences(seconds))},
    ]


def _differences(seconds: dict[bool, list[float]]) -> list[float]:
    """The step of each traced run minus that of its untraced partner."""
    return [on - off for off, on in zip(seconds[False][1:], seconds[True][1:], strict=True)]


def conclusion(results: list[dict[str, Any]]) -> str:
    """The share of a step by the cost of one span, and by the difference of runs, which holds the noise of both."""
    off, spans = results[0]["step"].median, results[1]["spans"]
    span, difference = results[2]["span"], results[3]["difference"]
    share = spans * span.median / off
    low, middle, high = (
        f"{100 * value / off:+.2f}"
        for value in (difference.lower_quartile, difference.median, difference.upper_quartile)
    )
    return (
        f"one span: {1e9 * span.median:.0f} ns ({1e9 * span.lower_quartile:.0f} to {1e9 * span.upper_quartile:.0f})\n"
        f"{spans:.1f} of them are {100 * share:.3f} % of a step; limit {100 * LIMIT:g} %: "
        f"{'kept' if share <= LIMIT else 'NOT KEPT'}\n"
        f"runs with a trace against runs without: {middle} % ({low} to {high})"
    )


def run(steps: int, traced: bool) -> tuple[float, float]:
    """One job in a process of its own: seconds a step in its steady state, and spans a step."""
    settings = ["engine=sequential", f"steps={steps}", f"trace.num_steps={steps if traced else 0}"]
    words = [word for setting in (*settings, "evaluate.every_epochs=0") for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bllpipe.launch", *words, "--run-dir", folder]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        summary = json.loads((Path(folder) / "summary.json").read_text())
        lines = [line for file in Path(folder).glob("spans/*.jsonl") for line in file.read_text().splitlines()[1:]]
    num_spans = sum(json.loads(line)["phase"] == "train" for line in lines)
    return Config().data.batch_size / summary["images_per_second"], num_spans / steps


def alone(n: int) -> list[float]:
    """Seconds of a call that is recorded, without those of the call itself."""
    return [_calls(_traced().call) - _calls(Nothing().call) for _ in range(n)]


def _traced() -> Nothing:
    track, nothing = Track("block 0", range(1)), Nothing()
    track.enter(Round("train", 0))
    wrap_method(nothing, "call", around=partial(record, track, "forward"))
    return nothing


class Nothing:
    """What a span surrounds here."""

    def call(self) -> None:
        """Returns at once."""


def _calls(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    for _ in range(ALONE):
        call()
    return (time.perf_counter() - start) / ALONE


def _row(result: dict[str, Any]) -> list[object]:
    return [result["case"], result["step"], f"{result['spans']:.1f}"]


if __name__ == "__main__":
    main()
