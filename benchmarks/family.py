"""The processes that a launcher has started, and the sockets on which they listen; on Linux."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
LISTENING = "0A"  # the state of a socket in /proc/net/tcp


def descendants(process: int) -> Iterator[int]:
    """``process`` and all of its descendants that still exist."""
    yield process
    with contextlib.suppress(OSError):
        for task in (PROC / str(process) / "task").iterdir():
            for child in (task / "children").read_text().split():
                yield from descendants(int(child))


def ranks_of(launcher: int) -> dict[int, int]:
    """The process ids of the ranks that ``launcher`` has started, by rank: by the name that a rank gives itself, and by
    the environment in which torchrun starts it."""
    found: dict[int, int] = {}
    for process in descendants(launcher):
        rank = _name(process).removeprefix("bllpipe rank ") if process != launcher else ""
        rank = rank if rank.isdecimal() else _variables(process).get("RANK", "")
        if process != launcher and rank:
            found.setdefault(int(rank), process)
    return found


def marked(name: str, value: str) -> list[int]:
    """All processes with this variable in their environment, orphans included."""
    numbers = [int(path.name) for path in PROC.iterdir() if path.name.isdecimal()]
    return [process for process in numbers if _variables(process).get(name) == value]


def _name(process: int) -> str:
    try:
        return (PROC / str(process) / "comm").read_text().strip()
    except OSError:
        return ""


def _variables(process: int) -> dict[str, str]:
    """The environment with which a process was started; empty if it has ended."""
    try:
        text = (PROC / str(process) / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(pair.partition("=")[::2] for pair in text.split("\0") if pair)


def listening(process: int) -> set[tuple[str, int]]:
    """Where a process listens: address in the kernel's hexadecimal (0100007F is 127.0.0.1), and port."""
    sockets = _listening_sockets()
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in (PROC / str(process) / "fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(sockets.get(str(descriptor.readlink())))
    return {place for place in found if place is not None}


def _listening_sockets() -> dict[str, tuple[str, int]]:
    """Address and port of every listening TCP socket of the machine, by the link target of its descriptor."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in (PROC / "net" / name).read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]": _place(row[1]) for row in rows if row[3] == LISTENING}


def _place(text: str) -> tuple[str, int]:
    address, _, port = text.partition(":")
    return address, int(port, 16)
