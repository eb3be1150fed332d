"""Seconds until the last process of a job has ended: refused at the start, stopped by a signal, or its launcher killed.

Tests check the order of events, but no times: those are measured here. The time of a refusal begins with the command,
that of the others with the signal to the launcher.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.family import marked
from benchmarks.report import Spread, table, write

TIMEOUT = 300.0  # seconds for each wait
STEPS = 20  # before a signal
MARK = "BLLPIPE_ENDINGS"
OWN = (sys.executable, "-m", "bllpipe.launch")


def torchrun(num_ranks: int) -> tuple[str, ...]:
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}")
    return (*start, "-m", "bllpipe.launch")


@dataclass(frozen=True)
class Case:
    """A job and how it ends: by itself, or by a signal to its launcher."""

    name: str
    start: tuple[str, ...]
    settings: tuple[str, ...] = ()
    number: signal.Signals | None = None


CASES = (
    Case("unknown key", OWN, ("optimizer.learning_rate=1",)),
    Case("wrong world size, torchrun", torchrun(3)),
    Case("impossible cut, torchrun", torchrun(5), ("blocks=[layer9.9, layer1.0, layer2.0]",)),
    Case("SIGTERM", OWN, ("steps=100000", "log.every_steps=1"), signal.SIGTERM),
    Case("SIGTERM, torchrun", torchrun(5), ("steps=100000", "log.every_steps=1"), signal.SIGTERM),
    Case("kill -9 of the launcher", OWN, ("steps=100000", "log.every_steps=1"), signal.SIGKILL),
    Case("kill -9 of the launcher, torchrun", torchrun(5), ("steps=100000", "log.every_steps=1"), signal.SIGKILL),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row per case; the repetitions of the cases are interleaved."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endings", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], metavar="NAME")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    chosen = [case for case in CASES if options.cases is None or case.name in options.cases]
    seconds: dict[str, list[float]] = {case.name: [] for case in chosen}
    for _ in range(options.repetitions):
        for case in chosen:
            with tempfile.TemporaryDirectory() as folder:
                seconds[case.name].append(measure(case, Path(folder) / "run"))
    results = [{"case": name, "seconds": Spread.of(found)} for name, found in seconds.items()]
    print(table(["job", "n", "s to its end"], [[r["case"], options.repetitions, r["seconds"]] for r in results]))
    print("median (smallest to largest), interleaved")
    write(options.json, __doc__.splitlines()[0], vars(options), results)
    return 0


def measure(case: Case, run_dir: Path) -> float:
    """Seconds from the command, or the signal, to the end of the last process of the job."""
    mark = uuid.uuid4().hex
    overrides = [text for setting in case.settings for text in ("--set", setting)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", MARK: mark}
    began = time.monotonic()
    process = subprocess.Popen(
        [*case.start, *overrides, "--run-dir", str(run_dir)],
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if case.number is not None:
        wait(lambda: steps(run_dir) >= STEPS)
        began = time.monotonic()
        process.send_signal(case.number)
    process.wait(TIMEOUT)
    wait(lambda: not marked(MARK, mark))
    return time.monotonic() - began


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"expected the job to change its state within {TIMEOUT:g} s; it has not")
        time.sleep(0.01)


def steps(run_dir: Path) -> int:
    """The number of lines of metrics.jsonl: one per rank and step."""
    path = run_dir / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
