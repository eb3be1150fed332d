"""A process that runs one task after another, and is replaced when a task fails, exits or exceeds its time limit.

After an error a CUDA context cannot be used again, and a graph that hangs cannot be stopped from within its process; a
new process starts with an empty GPU. While no task fails, all tasks share a process: starting one and its GPU takes
seconds, and libraries keep the kernels that they have chosen.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

from bllpipe.utils.process import end_with_parent

DETAIL_LINES = 30


@dataclass(frozen=True)
class Answer:
    """The result of a task: its ``value``, or the ``error`` in one line and the end of its traceback."""

    value: Any = None
    error: str | None = None
    details: str = ""
    seconds: float = 0.0


class Worker:
    """The process. It is a context manager, which kills the process at exit.

    Use it in the thread that created it: the kernel kills the process when that thread ends.
    """

    def __init__(self) -> None:
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._began = 0.0

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def ask(self, task: Callable[..., Any], *arguments: Any, limit: float) -> Answer:
        """Runs ``task(*arguments)`` in the process for at most ``limit`` seconds; task and arguments are pickled."""
        self.begin(task, *arguments)
        return self.answer(limit)

    def begin(self, task: Callable[..., Any], *arguments: Any) -> None:
        """Starts a task, whose ``answer`` must be taken before the next one."""
        self._began = time.monotonic()
        if self._process is None:
            self._start()
        assert self._connection is not None
        with suppress(BrokenPipeError):  # the process has ended, which ``answer`` reports
            self._connection.send((task, arguments))

    def answer(self, limit: float) -> Answer:
        """The result of the task; stops the process unless the task succeeded within ``limit`` seconds."""
        assert self._connection is not None and self._process is not None
        try:
            if self._connection.poll(max(limit, 0.0)):
                answer: Answer = self._connection.recv()
            else:
                answer = Answer(error=f"stopped after {time.monotonic() - self._began:.0f} s, its limit")
        except (EOFError, OSError):
            self._process.join(5)
            answer = Answer(error=f"its process ended with exit code {self._process.exitcode}")
        if answer.error is not None:  # its CUDA context may be unusable
            self.stop()
        return Answer(answer.value, answer.error, answer.details, time.monotonic() - self._began)

    def stop(self) -> None:
        """Kills the process and its children; the next task starts a new one."""
        if self._process is None or self._process.pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        with suppress(ProcessLookupError, PermissionError):  # it has ended, or has not yet created its group
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join(10)
        self._process = self._connection = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()


def _serve(connection: Connection, parent: int) -> None:
    os.setpgid(0, 0)  # so that children of a task, such as compilers, are stopped with it
    end_with_parent(parent)
    while True:
        try:
            task, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = Answer(task(*arguments))
        except BaseException as error:  # sys.exit included
            lines = "".join(traceback.format_exception(error)).splitlines()[-DETAIL_LINES:]
            what = traceback.format_exception_only(error)[-1].strip().splitlines()
            answer = Answer(error=what[0] if what else type(error).__name__, details="\n".join(lines))
        connection.send(answer)
