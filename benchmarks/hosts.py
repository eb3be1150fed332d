"""Hosts on this machine: network namespaces, each with one interface, eth0, at 10.77.0.1 and so on.

    without a delay   eth0 is a veth; the namespace that has the other ends routes between them
    with a delay      eth0 is a TUN device; a process holds the packets of all for a while (benchmarks/relay.py)

Processes, the store and the messages between them are real, as are TCP's windows and its retransmissions. Only root may
make namespaces, and a rate needs the kernel's token bucket filter (``tc ... tbf``).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

TUN = Path("/dev/net/tun")
INTERFACE, ROUTER = "eth0", "10.77.1.1"
# The same TCP on every machine. The window of a connection that was idle is not made small again: otherwise a message
# of 16 KiB takes two round trips, which costs an engine most that waits for each (with BBR, which paces, it does
# anyway).
TCP = ("net.ipv4.tcp_congestion_control=reno", "net.ipv4.tcp_slow_start_after_idle=0")
_SET_DEVICE = 0x400454CA  # TUNSETIFF
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000  # IFF_TUN, IFF_NO_PI
_NETWORK_NAMESPACE = 0x40000000  # CLONE_NEWNET


def reason_against() -> str | None:
    """Why this machine cannot have such hosts; None if it can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if not TUN.exists():
        return f"{TUN} does not exist"
    if missing := [name for name in ("ip", "tc") if shutil.which(name) is None]:
        return f"{' and '.join(missing)} not found; install iproute2"
    name = f"bllpipe-{os.getpid()}-try"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespace can be made: {done.stderr.strip()}"
    ip("netns", "del", name)
    return None


class Network:
    """``number`` hosts. ``delay``: seconds that every packet takes one way, None for a veth without a relay; ``rate``
    limits what each host sends, such as 100mbit. Packets of TCP to and from ``prompt_port`` are not delayed."""

    def __init__(self, number: int, delay: float | None = None, rate: str | None = None, prompt_port: int = 0) -> None:
        self.number, self._delay, self._rate, self._prompt_port = number, delay, rate, prompt_port
        self._names = [f"bllpipe-{os.getpid()}-{host}" for host in range(number + 1)]  # the last one routes
        self._relay: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Network:
        try:
            for name in self._names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
                run("ip", "netns", "exec", name, "sysctl", "--quiet", *TCP)
            if self._delay is None:
                self._connect_by_veth()
            else:
                self._connect_by_relay(self._delay)
            if self._rate is not None:
                limit = ("root", "tbf", "rate", self._rate, "burst", "32kb", "latency", "400ms")
                for name in self._names[:-1]:
                    run("tc", "-n", name, "qdisc", "add", "dev", INTERFACE, *limit)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Removes the hosts, and kills what still runs there."""
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
        for host, name in enumerate(self._names):
            with suppress(RuntimeError):
                for process in self.processes(host):
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                ip("netns", "del", name)

    def address(self, host: int) -> str:
        """The address of ``host``, counted from 0."""
        return f"10.77.0.{host + 1}"

    def on(self, host: int, words: Sequence[str]) -> list[str]:
        """The command that runs ``words`` on ``host``."""
        return ["ip", "netns", "exec", self._names[host], *words]

    def enter(self, host: int) -> None:
        """Moves this process to ``host``; for a fork that opens its sockets there."""
        with Path("/run/netns", self._names[host]).open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NETWORK_NAMESPACE):
                raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {self._names[host]}")

    def processes(self, host: int) -> list[int]:
        """The processes on ``host``."""
        return [int(word) for word in run("ip", "netns", "pids", self._names[host]).split()]

    def unplug(self, host: int) -> None:
        """Takes ``host`` off the network."""
        ip("-n", self._names[host], "link", "set", INTERFACE, "down")

    def plug_in(self, host: int) -> None:
        """Undoes ``unplug``."""
        ip("-n", self._names[host], "link", "set", INTERFACE, "up")
        self._add_route(host)

    def _connect_by_veth(self) -> None:
        router = self._names[-1]
        run("ip", "netns", "exec", router, "sysctl", "--quiet", "net.ipv4.ip_forward=1")
        for host in range(self.number):
            name, port = self._names[host], f"port{host}"
            ip("link", "add", INTERFACE, "netns", name, "type", "veth", "peer", "name", port, "netns", router)
            ip("-n", router, "link", "set", port, "up")
            ip("-n", router, "route", "add", f"{self.address(host)}/32", "dev", port)
            ip("-n", router, "address", "add", f"{ROUTER}/32", "dev", port)
            self._configure(host)

    def _connect_by_relay(self, delay: float) -> None:
        files = []
        for host in range(self.number):
            device = f"tun{os.getpid()}h{host}"
            files.append(open_tun(device))
            ip("link", "set", device, "netns", self._names[host], "name", INTERFACE)
            ip("-n", self._names[host], "link", "set", INTERFACE, "txqueuelen", "10000")
            self._configure(host)
        command = [sys.executable, "-m", "benchmarks.relay", str(delay), str(self._prompt_port), *map(str, files)]
        self._relay = subprocess.Popen(command, pass_fds=files)
        for file in files:
            os.close(file)

    def _configure(self, host: int) -> None:
        ip("-n", self._names[host], "address", "add", f"{self.address(host)}/32", "dev", INTERFACE)
        ip("-n", self._names[host], "link", "set", INTERFACE, "up")
        self._add_route(host)

    def _add_route(self, host: int) -> None:
        """Everything goes to the router, or the relay."""
        way = ("dev", INTERFACE) if self._delay is not None else ("via", ROUTER, "dev", INTERFACE, "onlink")
        ip("-n", self._names[host], "route", "replace", "default", *way)


def open_tun(name: str) -> int:
    """Makes a TUN device; the descriptor of the file with its packets, which does not block."""
    file = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _SET_DEVICE, struct.pack("16sH22x", name.encode(), _TUN_WITHOUT_HEADER))
    return file


def ip(*words: str) -> None:
    """The command ``ip``; RuntimeError if it fails."""
    run("ip", *words)


def run(*words: str) -> str:
    """What a command prints; RuntimeError with its errors if it fails."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
