"""Seconds from the start of a command to its first training step, or to its end, of this tree and of other ones.

A step has been trained when the first line of metrics.jsonl is there. Everything runs once as warm-up, and then all
commands of all trees in turn, ``--repeats`` times.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Spread, table, write

TIMEOUT = 300.0
POLL_SECONDS = 0.01
SETTINGS = [word for setting in ("log.every_steps=1", "checkpoint.every_steps=0") for word in ("--set", setting)]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=5", "-m", "bllpipe.launch"]
STEPS = {
    "own launcher, five ranks": ["-m", "bllpipe.launch"],
    "torchrun, five ranks": TORCHRUN,
    "one process": ["-m", "bllpipe.launch", "--set", "engine=sequential"],
}
ENDS = {
    "bllpipe --help": ["-m", "bllpipe.cli", "--help"],
    "bllpipe health --help": ["-m", "bllpipe.cli", "health", "--help"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for every command and tree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", nargs="*", default=[], metavar="DIR", help="other checkouts of bllpipe")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    trees = {"this": Path(__file__).parents[1], **{Path(text).name: Path(text).resolve() for text in options.against}}
    seconds: dict[tuple[str, str], list[float]] = {}
    for repeat in range(options.repeats + 1):
        for command in (*STEPS, *ENDS):
            for name, tree in trees.items():
                found = to_first_step(tree, STEPS[command]) if command in STEPS else to_end(tree, ENDS[command])
                if repeat > 0:  # the first one is warm-up
                    seconds.setdefault((command, name), []).append(found)
    results = [
        {"command": command, "tree": name, "seconds": Spread.of(values)} for (command, name), values in seconds.items()
    ]
    rows = [[f"{each['command']}, {each['tree']}", options.repeats, _text(each["seconds"])] for each in results]
    print(table(["to the first step, or to the end", "n", "seconds"], rows))
    print("median (smallest to largest)")
    write(options.json, str(__doc__).splitlines()[0], {"repeats": options.repeats}, results)
    return 0


def _text(spread: object) -> str:
    assert isinstance(spread, Spread)
    return f"{spread.median:.2f} ({spread.least:.2f} to {spread.most:.2f})"


def to_first_step(tree: Path, words: list[str]) -> float:
    """Starts the default run with ``words``, and ends it when its first step is written down."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *words, *SETTINGS, "--run-dir", f"{folder}/run"]
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=_variables(tree), cwd=tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        lines = Path(folder, "run", "metrics.jsonl")
        while not (lines.exists() and _has_step(lines)):
            if process.poll() is not None or time.perf_counter() - started > TIMEOUT:
                raise SystemExit(f"expected a first step within {TIMEOUT:g} s; {' '.join(command)} did not come to it")
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        process.send_signal(signal.SIGINT)
        process.wait(TIMEOUT)
    return seconds


def _has_step(path: Path) -> bool:
    return any(
        json.loads(line)["phase"] == "train" for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"
    )


def to_end(tree: Path, words: list[str]) -> float:
    """Runs a command that needs no rank."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *words], env=_variables(tree), cwd=tree, stdout=subprocess.DEVNULL, check=True, timeout=TIMEOUT
    )
    return time.perf_counter() - started


def _variables(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    sys.exit(main())
