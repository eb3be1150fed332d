"""A real job that is still running: tests watch its processes, disturb them, and see what is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.family import descendants, marked, ranks_of
from tests.support.forks import ForkedPython
from tests.support.jobs import REPOSITORY
from tests.support.waiting import PATIENCE, wait_until

MARK = "BLLPIPE_TEST_JOB"  # in the environment of all processes of a job, so that orphans are found too
OWN = (sys.executable, "-m", "bllpipe.launch")


def in_forks(start: tuple[str, ...]) -> tuple[str, ...]:
    """The same as forks of a process that has imported torch, for tests that are not about the start itself."""
    return start[1:]


def torchrun(num_ranks: int, *options: str) -> tuple[str, ...]:
    """``torchrun OPTIONS -m bllpipe.launch`` for this many ranks; on one machine unless the options say otherwise."""
    place = () if any(option.startswith("--nnodes") for option in options) else ("--standalone",)
    start = (sys.executable, "-m", "torch.distributed.run", *place, f"--nproc_per_node={num_ranks}")
    return (*start, *options, "-m", "bllpipe.launch")


class Running:
    """The launcher of a job, and what it has started."""

    def __init__(self, process: subprocess.Popen[str] | ForkedPython, mark: str, run_dir: Path) -> None:
        self.process, self.run_dir, self._mark = process, run_dir, mark

    @property
    def processes(self) -> list[int]:
        return list(descendants(self.process.pid))

    @property
    def ranks(self) -> dict[int, int]:
        """Process ids by rank."""
        return ranks_of(self.process.pid)

    def left(self) -> list[int]:
        """What is still there of the job, its launcher or not."""
        return self.process.family() if isinstance(self.process, ForkedPython) else marked(MARK, self._mark)

    def wait_for_step(self, step: int) -> None:
        """Until a rank has written down this step or a later one."""
        self.wait_until(lambda: any(line["step"] >= step for line in self._metrics()))

    def wait_until(self, is_so: Callable[[], object]) -> None:
        """Until ``is_so()``; fails if the job ends before."""

        def over() -> bool:
            ended = self.process.poll() is not None
            assert is_so() or not ended, f"the job has ended: {self.process.communicate()}"
            return bool(is_so())

        wait_until(over)

    def wait_until_nothing_is_left(self) -> None:
        wait_until(lambda: self.left() == [])

    def end(self) -> tuple[int, str]:
        """Waits for the launcher: its exit code and what was said on stderr."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.wait(), errors

    def _metrics(self) -> list[dict[str, int]]:
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


@contextmanager
def running(start: tuple[str, ...], run_dir: Path, *arguments: str, **variables: str) -> Iterator[Running]:
    """A job in ``run_dir``, started with the words of ``start`` and the ``arguments`` behind them; whatever happens,
    nothing of it stays."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), MARK: mark, **variables}
    command = [*start, "--run-dir", str(run_dir), *arguments]
    with _started(command, environment) as process:
        job = Running(process, mark, run_dir)
        try:
            yield job
        finally:
            for pid in job.left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _started(
    command: list[str], environment: dict[str, str]
) -> contextlib.AbstractContextManager[subprocess.Popen[str] | ForkedPython]:
    if command[0] != sys.executable:
        return contextlib.nullcontext(ForkedPython(command, environment, REPOSITORY, apart=True))
    return subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
