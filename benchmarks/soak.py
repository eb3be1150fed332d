"""Searches for leaks: a job that is killed and restarted hundreds of times, and one that runs for half an hour.

Open files, threads, memory and temporary files of all their processes are compared at the beginning and the end. Both
run at the same time; all restarts are those of one launcher.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.family import ranks_of
from benchmarks.report import table, write
from bllpipe.utils.console import Bar

ENDLESS = ("model.width=4", "data.batch_size=32", "blocks=2", "epochs=100000", "evaluate.every_epochs=0")
SAMPLE_SECONDS = 5.0
PATIENCE = 300.0  # seconds for the next step of a start


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line, runs both, and prints a row for everything that might grow."""
    options = parser().parse_args(arguments)
    samples: dict[str, list[Sample]] = {"restarts": [], "long run": []}
    with tempfile.TemporaryDirectory() as folder:
        bar = Bar("soak", options.restarts + ceil(60 * options.minutes / SAMPLE_SECONDS))
        parts: list[Callable[[], None]] = [
            lambda: restart(Path(folder) / "restarts", options.restarts, samples["restarts"], bar),
            lambda: run_long(Path(folder) / "long", 60 * options.minutes, samples["long run"], bar),
        ]
        with ThreadPoolExecutor(len(parts)) as pool, bar:
            for done in [pool.submit(part) for part in parts]:
                done.result()
    rows = [row for name, taken in samples.items() for row in growth(name, taken)]
    print(table(HEADS, [[row[head] for head in HEADS] for row in rows]))
    print("medians of the second tenth and of the last tenth of the samples")
    write(options.json, __doc__.splitlines()[0], vars(options), rows)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--restarts", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", metavar="FILE")
    return parser


@dataclass(frozen=True)
class Sample:
    """Of a job: open files, threads and resident bytes of its processes together, and files that it left somewhere.
    torchrun's own temporary folders, one a rank and attempt, are left out."""

    open_files: int
    threads: int
    resident_bytes: int
    temporary_files: int
    files_of_the_run: int


class Job:
    """A job whose temporary files go to a folder of its own."""

    def __init__(self, folder: Path, restarts: int) -> None:
        self.folder = folder
        (folder / "tmp").mkdir(parents=True)
        words = [
            "--nproc_per_node=3",
            f"--max-restarts={restarts}",
            "-m",
            "bllpipe.launch",
            "--run-dir",
            f"{folder}/run",
        ]
        settings = [word for setting in ENDLESS for word in ("--set", setting)]
        self.launcher = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                *words,
                "--run-dir",
                f"{folder}/run",
                *settings,
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")},
            stdout=(folder / "out").open("w"),
            stderr=subprocess.STDOUT,
        )

    def ranks(self) -> list[psutil.Process]:
        """Those that are there now."""
        found = []
        for number in ranks_of(self.launcher.pid).values():
            with suppress(psutil.Error):
                process = psutil.Process(number)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def checkpoint(self) -> int:
        """The step of the newest checkpoint."""
        names = [path.name for path in self.folder.glob("run/checkpoints/step-????????")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def sample(self, processes: Sequence[psutil.Process]) -> Sample:
        return Sample(
            sum(process.num_fds() for process in processes),
            sum(process.num_threads() for process in processes),
            sum(process.memory_info().rss for process in processes),
            sum(1 for path in entries(self.folder / "tmp") if "torchelastic_" not in path),
            sum(1 for _ in entries(self.folder / "run")),
        )

    def close(self) -> None:
        """With everything that belongs to it."""
        for process in [*psutil.Process(self.launcher.pid).children(recursive=True), psutil.Process(self.launcher.pid)]:
            with suppress(psutil.Error):
                process.kill()
        self.launcher.wait()


def entries(folder: Path) -> Iterator[str]:
    """Everything below ``folder``, while others write and remove there."""
    for place, folders, files in os.walk(folder):
        yield from (f"{place}/{name}" for name in (*folders, *files))


def restart(folder: Path, number: int, samples: list[Sample], bar: Bar) -> None:
    """One rank is killed whenever a start has got to a new checkpoint; sampled is the launcher, which stays."""
    draws = random.Random(0)  # noqa: S311
    with closing(Job(folder, number + 1)) as job:
        _kill(job, number, samples, draws, bar)


def _kill(job: Job, number: int, samples: list[Sample], draws: random.Random, bar: Bar) -> None:
    for count in range(number):
        before, end = job.checkpoint(), time.monotonic() + PATIENCE
        while job.checkpoint() <= before or len(job.ranks()) < 3:
            assert time.monotonic() < end, f"restart {count} got no further: {(job.folder / 'out').read_text()[-2000:]}"
            time.sleep(0.1)
        samples.append(job.sample([psutil.Process(job.launcher.pid)]))
        draws.choice(job.ranks()).kill()
        bar.advance(f"restart {count + 1} of {number}")
        if count % 20 == 0:
            print(f"restart {count} of {number}: {samples[-1]}", flush=True)


def run_long(folder: Path, seconds: float, samples: list[Sample], bar: Bar) -> None:
    """Samples the ranks of an undisturbed run."""
    end = time.monotonic() + seconds
    with closing(Job(folder, 0)) as job:
        while time.monotonic() < end:
            time.sleep(SAMPLE_SECONDS)
            bar.advance("long run")
            if job.checkpoint():
                samples.append(job.sample(job.ranks()))


HEADS = ["job", "what", "samples", "at the beginning", "at the end"]


def growth(name: str, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """A row for everything that was sampled."""
    tenth = max(1, len(samples) // 10)
    return [
        {
            "job": name,
            "what": what.replace("_", " "),
            "samples": len(samples),
            "at the beginning": median(getattr(sample, what) for sample in samples[tenth : 2 * tenth] or samples),
            "at the end": median(getattr(sample, what) for sample in samples[-tenth:]),
        }
        for what in asdict(samples[0])
    ]


if __name__ == "__main__":
    sys.exit(main())
