"""Memory of a block: the peak of a rank with recomputation, with sharding over two ranks, with both, and without.

And which of these train under a limit that the kernel enforces on the data of every process (RLIMIT_DATA: what it has
reserved, used or not).

The network is one block of equal wide units, on synthetic data; a batch has two shards in every case, so that all learn
the same. A feedback rank, which holds nothing of the network, shows what a process needs for itself. What trains under
the limit is measured there, anything else without a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.report import Spread, table, write
from bllpipe.errors import OutOfMemoryError

MB = 1e6
CASES = {
    "plain": ("replicas=1",),
    "recompute": ("replicas=1", "model.recompute=units"),
    "two replicas": ("replicas=2",),
    "fsdp": ("replicas=2", "sharding=fsdp"),
    "fsdp and recompute": ("replicas=2", "sharding=fsdp", "model.recompute=units"),
}


def wide(in_channels: int, num_classes: int, units: int, width: int) -> list[nn.Module]:
    """Units of ``width`` x ``width`` weights, for images of 16 x 16."""

    def unit(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]

    first = nn.Sequential(nn.Flatten(1), *unit(in_channels * 16 * 16))
    return [first, *(nn.Sequential(*unit(width)) for _ in range(units)), nn.Linear(width, num_classes)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--units", type=int, default=48)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1024, help="images in a batch of two shards")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1700.0, help="MB of data that a process may have")
    parser.add_argument("--n", type=int, default=1, help="runs of every case that are measured")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    options = parser.parse_args()
    results, limit = [], int(options.limit * MB)
    for case in CASES:
        limited = run(case, options, limit)
        runs = [] if limited["message"] else [limited]
        runs += [run(case, options, None if limited["message"] else limit) for _ in range(options.n - len(runs))]
        results.append(result(case, runs, limited["message"]))
        print(f"{case}: {limited['message'] or 'trains'}", flush=True)
    parameters = runs[0]["parameters"][0]
    print(table(["case", "peak of a rank, MB", "of the feedback", f"with at most {options.limit:g} MB"], rows(results)))
    print(f"{parameters:,} parameters ({4 * parameters / MB:.0f} MB), n = {options.n}: median (least to most)")
    write(options.json, (__doc__ or "").splitlines()[0], {**vars(options), "parameters": parameters}, results)


def run(case: str, options: argparse.Namespace, limit: int | None) -> dict[str, Any]:
    """One run of a case, in processes with ``limit`` bytes of data each: its summary, or what its failure says."""
    settings = [
        *(
            "model.name=benchmarks.memory:wide",
            f"model.args.units={options.units}",
            f"model.args.width={options.width}",
        ),
        *("blocks=1", "data.name=synthetic", "data.image_size=16", f"data.synthetic_images={2 * options.batch}"),
        *(f"data.batch_size={options.batch}", f"steps={options.steps}", "shards=2", "reduce=native"),
        *("evaluate.every_epochs=never", "checkpoint.every_steps=0", *CASES[case]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        words = [word for setting in settings for word in ("--set", setting)]
        done = subprocess.run(
            [sys.executable, "-m", "bllpipe.launch", *words, "--run-dir", f"{folder}/run", "--output", "quiet"],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=None if limit is None else partial(resource.setrlimit, resource.RLIMIT_DATA, (limit, limit)),
        )
        if limit is None and done.returncode:
            raise SystemExit(f"{case} has failed without a limit:\n{done.stderr}")
        if done.returncode not in (0, OutOfMemoryError.exit_code):
            raise SystemExit(f"{case} has failed, but not for want of memory:\n{done.stderr}")
        summary = Path(folder, "run", "summary.json")
        found: dict[str, Any] = json.loads(summary.read_text()) if done.returncode == 0 else {}
        return {**found, "message": done.stderr.strip() if done.returncode else ""}


def result(case: str, runs: Sequence[Mapping[str, Any]], message: str) -> dict[str, Any]:
    """Peaks (VmHWM) in MB: the largest of the block's ranks, and that of the feedback, which is the last one; and the
    ``message`` with which the case has failed under the limit, if it has."""
    peaks = [[size / MB for size in each["peak_memory_bytes"]] for each in runs]
    return {
        "case": case,
        "peak": Spread.of([max(ranks[:-1]) for ranks in peaks]),
        "feedback": Spread.of([ranks[-1] for ranks in peaks]),
        "message": message,
    }


def rows(results: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    return [
        [each["case"], each["peak"], each["feedback"], "no memory" if each["message"] else "trains"] for each in results
    ]


if __name__ == "__main__":
    main()
