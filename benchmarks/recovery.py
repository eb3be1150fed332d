"""Seconds from ``kill -9`` of a rank to the first training step after it, restarted by torchrun and by bllpipe.launch.

One run of the digits per launcher: the ranks are killed in turn, ``--kills`` times in all, and the launcher restarts
the run from its newest checkpoint. The final weights must equal those of an undisturbed run.
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
from typing import Any

from benchmarks.family import ranks_of
from benchmarks.report import Spread, table, write

TIMEOUT = 120.0  # seconds for each wait
STEPS_BETWEEN = 50  # from a restart to the next kill
SETTINGS = ("checkpoint.every_steps=20", "log.every_steps=1")
OVERRIDES = [text for setting in SETTINGS for text in ("--set", setting)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row per launcher."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = _finish(_start("own", Path(folder) / "undisturbed", 0), Path(folder) / "undisturbed")
        results = [_measure(name, Path(folder) / name, options.kills) for name in ("torchrun", "own")]
    for result in results:
        result["same"] = result.pop("digest") == undisturbed
    heads = ["restarts by", "kills", "s from kill to step", "same weights"]
    print(table(heads, [[r["launcher"], r["seconds"].n, r["seconds"], r["same"]] for r in results]))
    print("median (smallest to largest); every rank in turn")
    write(options.json, __doc__.splitlines()[0], vars(options), results)
    return 0


def _measure(launcher: str, run_dir: Path, kills: int) -> dict[str, Any]:
    process = _start(launcher, run_dir, kills)
    seconds = []
    for number in range(kills):
        _wait_for_steps(run_dir, STEPS_BETWEEN)
        ranks = ranks_of(process.pid)
        seconds.append(_recover(run_dir, ranks[number % len(ranks)]))
        print(f"{launcher}: rank {number % len(ranks)} killed, {seconds[-1]:.1f} s", flush=True)
    return {"launcher": launcher, "seconds": Spread.of(seconds), "digest": _finish(process, run_dir)}


def _start(launcher: str, run_dir: Path, restarts: int) -> subprocess.Popen[bytes]:
    own = [sys.executable, "-m", "bllpipe.launch", f"--max-restarts={restarts}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=5"]
    start = own if launcher == "own" else [*torchrun, f"--max-restarts={restarts}", "-m", "bllpipe.launch"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*start, *OVERRIDES, "--run-dir", str(run_dir)]
    return subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _recover(run_dir: Path, process: int) -> float:
    """Kills a rank; returns the seconds until a rank logs the first step of the next attempt."""
    begun = _status(run_dir)["time"]
    os.kill(process, signal.SIGKILL)
    killed = time.monotonic()
    while _status(run_dir)["time"] == begun or _status(run_dir)["status"] != "running":
        _pause(killed)
    kept = len(_lines(run_dir))  # of the attempts before; no rank has opened its process group yet
    while len(_lines(run_dir)) == kept:
        _pause(killed)
    return time.monotonic() - killed


def _wait_for_steps(run_dir: Path, number: int) -> None:
    """Waits until this attempt has trained ``number`` steps."""
    since = time.monotonic()
    while not (run_dir / "status.json").exists():
        _pause(since)
    start = _status(run_dir)["step"]
    while max((json.loads(line)["step"] for line in _lines(run_dir)[-20:]), default=0) < start + number:
        _pause(since)


def _pause(since: float) -> None:
    if time.monotonic() - since > TIMEOUT:
        raise SystemExit(f"expected the run to restart within {TIMEOUT:g} s; it has not")
    time.sleep(0.01)


def _status(run_dir: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run_dir / "status.json").read_text())
    return record


def _lines(run_dir: Path) -> list[str]:
    """The whole lines of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    return [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"] if path.exists() else []


def _finish(process: subprocess.Popen[bytes], run_dir: Path) -> str:
    """Waits for the end of a run; returns its digest."""
    if process.wait(TIMEOUT) != 0:
        raise SystemExit(f"the run ended with exit code {process.returncode}: {_status(run_dir)}")
    return str(json.loads((run_dir / "summary.json").read_text())["state_sha256"])


if __name__ == "__main__":
    sys.exit(main())
