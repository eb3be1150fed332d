"""``python WORDS`` as a fork of a process that has imported torch: it starts at once, and not in seconds.

What it starts in turn are forks, too, which saves as much again: the server from which bllpipe's launcher forks its
ranks, and the ranks of torchrun. Tests that are about these starts themselves use a real python."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from bllpipe.engines.rank_processes import RankProcesses, serve
from bllpipe.utils.process import end_with_parent
from tests.support.spawning import FORKSERVER
from tests.support.waiting import PATIENCE


class ForkedPython:
    """``python WORDS`` under way in a session of its own, with what is used of a ``subprocess.Popen`` whose output is
    text. ``variables`` are its whole environment. What it prints on stderr is in its stdout, unless it is kept
    ``apart``; what it prints is in ``log`` if that is given, which may be a terminal: it is the process's own then."""

    def __init__(
        self,
        words: Sequence[str],
        variables: Mapping[str, str],
        folder: Path,
        apart: bool = False,
        log: Path | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.args, self._lock = list(words), threading.Lock()
        self._out, self._err = log or Path(self._folder.name, "out"), Path(self._folder.name, "err")
        said = (self._out, self._err if apart else self._out)
        self._process = FORKSERVER.Process(
            target=_as_python, args=(self.args, dict(variables), folder, said), daemon=True
        )
        self._process.start()
        self.pid = int(self._process.pid or 0)

    @property
    def returncode(self) -> int | None:
        with self._lock:  # it can be read but once
            return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self._process.sentinel], timeout)
        code = self.returncode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0, self._out.read_text())
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self._out.read_text(), self._err.read_text() if self._err.exists() else ""

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def family(self) -> list[int]:
        """All processes that print to where it prints, orphans included."""
        places, found = {str(self._out), str(self._err)}, []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str((process / "fd" / "2").readlink()) in places:
                    found.append(int(process.name))
        return found


def popen(
    command: Sequence[str],
    *,
    env: Mapping[str, str] = os.environ,
    cwd: Path | None = None,
    stdout: Any = None,
    stderr: Any = None,
    **others: Any,
) -> ForkedPython:
    """In the place of ``subprocess.Popen``, for ``[env NAME=VALUE] python WORDS`` whose output is text."""
    words, variables = list(command), dict(env)
    while words[0] != sys.executable:
        name, equals, value = words.pop(0).partition("=")
        variables |= {name: value} if equals else {}
    log = Path(stdout.name) if hasattr(stdout, "name") else None
    return ForkedPython(words[1:], variables, cwd or Path.cwd(), stderr == subprocess.PIPE, log)


def run(command: Sequence[str], timeout: float = PATIENCE, **others: Any) -> subprocess.CompletedProcess[str]:
    """In the place of ``subprocess.run`` with ``capture_output``. Nothing of it stays."""
    process = popen(command, stderr=subprocess.PIPE, **others)
    try:
        out, err = process.communicate(timeout)
    finally:
        for left in process.family():
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


# In the place of the module ``subprocess`` in a module that starts such commands.
SUBPROCESS = SimpleNamespace(
    Popen=popen,
    run=run,
    PIPE=subprocess.PIPE,
    STDOUT=subprocess.STDOUT,
    DEVNULL=subprocess.DEVNULL,
    TimeoutExpired=subprocess.TimeoutExpired,
)


def _as_python(words: list[str], variables: dict[str, str], folder: Path, said: tuple[Path, Path]) -> None:
    """Becomes the process that is asked for."""
    import torch

    torch.set_num_threads(1)
    os.setsid()
    for path, number in zip(said, (1, 2), strict=True):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)  # a terminal that can be read is that of the session
        os.dup2(file, number)
        os.close(file)
    if os.isatty(1):
        os.dup2(1, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.chdir(folder)
    vars(multiprocessing.current_process())["_config"]["daemon"] = False  # it may have children
    setattr(RankProcesses, "_start_server", _fork_server)  # noqa: B010  # a method of another class
    if "torch.distributed.run" in words:
        _fork_ranks_of_torchrun()
    os._exit(_code_of(partial(_run, words, variables)))


def _run(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """``python words`` in this process."""
    os.environ.clear()
    os.environ.update(variables)
    kind, name, *others = words if words[0] in ("-m", "-c") else ("script", *words)
    sys.argv = [name if kind == "script" else kind, *others]
    sys.path.insert(0, str(Path(name).parent) if kind == "script" else "")
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # it is imported ahead
    if kind == "-m":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif kind == "script":
        runpy.run_path(name, run_name="__main__")
    else:
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(name, "<string>", "exec"), vars(sys.modules["__main__"]))


class _Fork:
    """A child of this process in a session of its own, with what is used of a ``subprocess.Popen``."""

    def __init__(self, task: Callable[[], object]) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        with warnings.catch_warnings():  # Python 3.12 warns of threads: those that there are hold nothing
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            os.setsid()
            os._exit(_code_of(task))

    def poll(self) -> int | None:
        return self._end(os.WNOHANG)

    def wait(self) -> int | None:
        return self._end(0)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        self.wait()

    def _end(self, options: int) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode


def _code_of(task: Callable[[], object]) -> int:
    """Runs it as a process does, to the last; its exit code."""
    for number in signal.Signals:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    code = 0
    try:
        task()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter does before it ends
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return code


def _fork_server(self: Any) -> None:
    """Starts the server of a launcher's ranks: RankProcesses._start_server, without a new python."""
    channel, its_end = Pipe()
    _, engine_name, *argv = self._arguments
    variables, launcher = {"OMP_NUM_THREADS": str(self._cpu_threads), **os.environ}, os.getpid()

    def task() -> None:
        channel.close()
        os.environ.update(variables)
        end_with_parent(launcher)
        serve(its_end, engine_name, argv, can_fork=True)

    self._channel, self._server, self._ready = channel, _Fork(task), False
    its_end.close()


def _fork_ranks_of_torchrun() -> None:
    """Makes torchrun, of which this process becomes the agent, start its ranks as forks of a server that has none of
    the agent's threads."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    channel, its_end = Pipe()
    agent = os.getpid()

    def task() -> None:
        channel.close()
        end_with_parent(agent)
        _start_and_tell(its_end)

    server = _Fork(task)
    its_end.close()
    atexit.register(server.end)
    lock = threading.Lock()

    def ask(*question: Any) -> Any:
        with lock:
            channel.send(question)
            return channel.recv()

    def popen(self: SubprocessHandler, words: Sequence[str], variables: Mapping[str, str]) -> _RankOfTorchrun:
        return _RankOfTorchrun(ask, [word for word in words[1:] if word != "-u"], dict(variables))

    setattr(SubprocessHandler, "_popen", popen)  # noqa: B010


def _start_and_tell(channel: Connection) -> None:
    """Starts a process for words and variables, and tells of one that was started whether it has ended."""
    started: dict[int, _Fork] = {}
    with suppress(EOFError):
        while True:
            match channel.recv():
                case words, variables:
                    fork = _Fork(partial(_run, words, variables))
                    started[fork.pid] = fork
                    channel.send(fork.pid)
                case (pid,):
                    channel.send(started[pid].poll())


class _RankOfTorchrun:
    """What torchrun's agent asks of a ``subprocess.Popen``."""

    def __init__(self, ask: Callable[..., Any], words: list[str], variables: dict[str, str]) -> None:
        self._ask = ask
        self.pid = int(ask(words, variables))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask(self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a rank", timeout)
            time.sleep(0.02)
        return self.poll() or 0
