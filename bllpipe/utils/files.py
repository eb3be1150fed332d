"""Atomic writes, bounded reads, the lock of a run directory, and messages for paths that the system refuses.

A kill or a power cut leaves the old file or the new one. Only regular files are read, and JSON of limited size and
depth; an error names the file and what to do. The lock is ``flock`` on an open file, so the kernel releases it when the
process ends, however that happens, and a run that was killed can be resumed at once. Processes that were forked in
between hold it too, until they have ended.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from bllpipe.errors import BllpipeError, CheckpointError, ConfigError, OutputError
from bllpipe.utils.console import warn
from bllpipe.utils.process import start_time

IfUnwritable = Literal["fail", "go_on"]
KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
MAX_BYTES = 4 << 20  # a manifest of 16,000 ranks; parsed, JSON may need thirty times as much memory
MAX_DEPTH = 50
LOCK_NAME = ".run.lock"
LOCK_PATIENCE_SECONDS = 5.0  # for the processes of a run that was killed just now
LOCK_POLL_SECONDS = 0.05
WITHOUT_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Raises OutputError in place of an OSError while ``what`` is written to ``path``."""
    try:
        yield
    except OSError as error:
        raise OutputError(refusal(what, path, error)) from error


def refusal(what: str, path: Path, error: Exception) -> str:
    """The message of a failed write, with its reason and the free space."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot write {what} to {path}: {reason}; {free_room(path)}"


def atomic_write(path: Path, text: str) -> None:
    """Replaces the file in one rename, so readers see the old or the new one; a failed write leaves no partial file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def append_line(path: Path, line: str) -> None:
    """Appends a line in one write, as several ranks share the file; a failed write leaves no partial line."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    content = left = f"{line}\n".encode()
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        if written := len(content) - len(left):
            with suppress(OSError):  # a partial line would corrupt the next one
                os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) - written)
        raise
    finally:
        os.close(descriptor)


class WritePolicy:
    """With the policy ``go_on`` a run continues when a write fails: ``warn`` is called at the first failure, and when
    writes succeed again, with the number of lost ones."""

    def __init__(self, policy: IfUnwritable, what: str, key: str, warn: Callable[[str], None]) -> None:
        self._policy, self._what, self._key, self._warn = policy, what, key, warn
        self._missing, self._lock = 0, threading.Lock()

    def attempt(self, write: Callable[[], None]) -> None:
        """Calls ``write``; its OutputError is raised or, with ``go_on``, a warning."""
        try:
            write()
        except OutputError as error:
            if self._policy == "fail":
                raise
            with self._lock:
                self._missing += 1
                if self._missing == 1:
                    self._warn(f"{error.found}; the run goes on without ({self._key}: go_on)")
            return
        with self._lock:
            if self._missing:
                self._warn(f"{self._what} can be written again; {self._missing} could not")
            self._missing = 0


def free_room(path: Path) -> str:
    """The free space of the file system of ``path``."""
    for place in (path, *path.parents):
        with suppress(OSError):
            return f"{shutil.disk_usage(place).free:,} bytes are free there"
    return "how much is free there is not known"


def run_directory(text: str) -> Path:
    """The path ``text``; ConfigError unless it is a run directory."""
    path = Path(text)
    if not path.is_dir():
        raise ConfigError(
            f"{path} is not a directory; expected the directory of a run, such as runs/digits-resnet18-bll"
        )
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} holds no config.yaml, so it is not the directory of a run; name one under runs/")
    return path


def output_file(text: str) -> Path:
    """The path ``text`` of a file to write; ConfigError if it is a directory, or its own directory does not exist."""
    path = Path(text)
    if path.is_dir():
        raise ConfigError(f"{path} is a directory; expected the name of a file, such as {path}/FILE")
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no directory {path.parent}; make it, or name another")
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path for ``path``. On exit the file is synced and renamed; after an error it is removed."""
    temporary = path.with_name(f".{path.name}")
    try:
        yield temporary
        with suppress(OSError):  # a file system without modes
            temporary.chmod(path.parent.stat().st_mode & 0o666)  # as the umask has it: safetensors makes private files
        sync(temporary)
        temporary.replace(path)
    except Exception:
        with suppress(OSError):
            temporary.unlink()
        raise


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def ordinary_size(path: Path) -> int:
    """The size of the file in bytes; CheckpointError if it is missing or not a regular file."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise CheckpointError(f"{path} is damaged: it is {kind}; expected the file that was written there")
    return found.st_size


def json_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in ``text``; empty for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a file for ``read_record``; CheckpointError if it is larger than that accepts."""
    content = render(record)
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{path} would have {len(content):,} bytes; at most {MAX_BYTES:,} can be read back")
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def read_record(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON object in a file, and its bytes; CheckpointError for anything else."""
    ordinary_size(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{path} is damaged: it has more than {MAX_BYTES:,} bytes")
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    if _is_deep(record):
        raise CheckpointError(f"{path} is damaged: it is nested deeper than {MAX_DEPTH} levels")
    return record, content


def render(record: Mapping[str, Any]) -> bytes:
    """The canonical JSON of a record, so that bytes can be compared."""
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def _is_deep(record: object) -> bool:
    """Whether a recursive walk through ``record`` could overflow the stack; checked level by level."""
    level: list[Any] = [record]
    for _ in range(MAX_DEPTH):
        inner = [list(node.values()) if isinstance(node, dict) else node for node in level]
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True


class RunLock:
    """Holds at most one run directory. ``agent`` is the process that started this one. If it ``restarts`` it after a
    failure, no other run of this machine gets the directory while the agent lives, also between two attempts; but other
    agents of the same ``job`` do, which may start rank 0 the next time."""

    def __init__(self, agent: int | None = None, restarts: bool = False, job: str | None = None) -> None:
        self._descriptor: int | None = None
        self._agent, self._restarts, self._job = agent, restarts, job

    def take(self, directory: Path) -> None:
        """Returns when this process has the directory, which is made if it is not there; ConfigError when a live run
        has it. A directory that is not writable is not locked: the first write there reports why."""
        if self._descriptor is not None:
            return
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now().isoformat(" ", "seconds")}
        agent: dict[str, Any] = {"job": self._job} if self._job else {}
        if self._agent is not None:
            agent |= {"restarter": self._agent, "started": start_time(self._agent)}
        try:
            _wait_for_lock(descriptor, directory, {**holder, **agent})
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _write_holder(descriptor, json.dumps({**holder, **(agent if self._restarts else {})}).encode())

    def release(self) -> None:
        """Leaves the directory to others; the file stays, as another process may be waiting for it already."""
        if self._descriptor is not None:
            _write_holder(self._descriptor, b"")
            os.close(self._descriptor)
            self._descriptor = None


def _write_holder(descriptor: int, content: bytes) -> None:
    with suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)


def _wait_for_lock(descriptor: int, directory: Path, holder: Mapping[str, Any]) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_restarting(_lock_record(descriptor), holder):
                return
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # for the next attempt of the other run
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            warn(f"{directory} cannot be locked ({error.strerror}): do not start a second run in it")
            return
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{directory} is in use by a run that is alive: {_described(_lock_record(descriptor))}; wait for it or "
                f"stop it, or name another --run-dir"
            )
        threading.Event().wait(LOCK_POLL_SECONDS)


def _lock_record(descriptor: int) -> dict[str, Any]:
    """What the holder of the lock, or the last one, has written; empty if it cannot be read."""
    try:
        return json_object(os.pread(descriptor, 4096, 0))
    except OSError:
        return {}


def _is_restarting(other: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether the last holder is dead, but will be started again by a live process of this machine that is not ours."""
    is_own = other.get("job") == own["job"] if "job" in own else False
    is_own |= all(other.get(key) == own.get(key) for key in ("restarter", "started"))
    if other.get("host") != own["host"] or is_own:
        return False
    restarter, started = other.get("restarter"), other.get("started")
    return isinstance(restarter, int) and started is not None and start_time(restarter) == started


def _described(record: Mapping[str, Any]) -> str:
    """``host a, process 12, since 2026-01-02 03:04:05``, as far as it is known."""
    if not {"host", "pid", "since"} <= record.keys():
        return "its process is unknown"
    again = f", which process {record['restarter']} starts again after a failure" if record.get("restarter") else ""
    return f"host {record['host']}, process {record['pid']}, since {record['since']}{again}"


MAX_NAME, MAX_PATH = 255, 4095  # bytes, on Linux
MAX_SHOWN = 200  # characters of a path in a message
# What to do about a path that the system refuses; for all other reasons: to name another one.
REMEDIES = {
    errno.ENAMETOOLONG: f"expected names of at most {MAX_NAME} bytes, and a path of at most {MAX_PATH:,}; shorten it",
    errno.EACCES: "expected a place that this user may read and write; change its mode, or name another",
    errno.ELOOP: "expected no links in a circle; remove one, or name another place",
}


@contextmanager
def refused_paths() -> Iterator[None]:
    """Raises ConfigError in place of an OSError that names a file: for the paths that a user types."""
    try:
        yield
    except OSError as error:
        if error.filename is None or isinstance(error, BrokenPipeError):
            raise
        raise ConfigError(
            f"{_shortened(error.filename)} cannot be used: {error.strerror}; "
            f"{REMEDIES.get(error.errno or 0, 'name another place')}"
        ) from error
    except RuntimeError as error:  # of Path.resolve, before Python 3.13
        if not str(error).startswith("Symlink loop"):
            raise
        raise ConfigError(f"{_shortened(error)}; {REMEDIES[errno.ELOOP]}") from error


def check_length(path: Path) -> None:
    """Raises the OSError of a path that is too long also while its directories do not exist."""
    if len(os.fsencode(path)) > MAX_PATH or any(len(os.fsencode(part)) > MAX_NAME for part in path.parts):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))


def _shortened(name: object) -> str:
    text = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text):,} characters)"


def write_result(path: Path, text: str) -> None:
    """Writes a file that a command was asked for, in UTF-8; what is not UTF-8 in it, such as a run's name, as escapes.
    Raises BllpipeError, so that half a file on a full disk has not the exit code of a whole one."""
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise BllpipeError(f"cannot write {_shortened(path)}: {error.strerror}; {free_room(path)}") from error
