"""The part of the command line that all collections of trials share."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.trials import Trial, run_trials
from bllpipe.errors import BllpipeError


def add_run_options(parser: argparse.ArgumentParser, out: str, runs: str) -> None:
    """Where, how long and how many at a time."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--budget", type=float, default=math.inf, metavar="MINUTES", help="default: until all is done")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="runs side by side (default: 1)")
    parser.add_argument("--data-path", metavar="PATH", help="folder or file of the data")
    parser.add_argument("--out", type=Path, default=Path(out), metavar="FILE.jsonl", help=f"results (default: {out})")
    parser.add_argument("--runs", type=Path, default=Path(runs), metavar="DIR", help=f"run directories ({runs})")
    parser.add_argument("--keep-runs", action="store_true", help="keep the checkpoints of finished runs too")


def run(trials: Sequence[Trial], options: argparse.Namespace) -> int:
    """Runs the trials; returns the exit code."""
    arguments = (trials, options.out, options.runs, 60 * options.budget, options.workers, options.keep_runs)
    return run_trials(*arguments).exit_code


def finish(command: Callable[[], int]) -> int:
    """The exit code of ``command``; an error is one message, and no run outlives a SIGTERM or Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return command()
    except BllpipeError as error:
        print(f"bllpipe: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
