"""Delays the packets between TUN devices: ``python -m benchmarks.relay SECONDS PORT FILE...``, open files of devices.

    host 1: TUN device -> file -> relay, holds every packet for SECONDS -> file -> TUN device: host 2

netem does the same in the kernel, where the kernel has it. Packets are IPv4; the one to 10.x.y.N goes to the N-th file.
All of them wait equally long, so none overtakes another; only TCP to and from PORT, that of a store, does not wait, as
hundreds of round trips to it come before the first step of a job, and none later.
"""

from __future__ import annotations

import os
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence

from bllpipe.utils.process import end_with_parent

MAX_PACKET = 65536
PROTOCOL, LAST_BYTE_OF_DESTINATION = 9, 19  # in an IPv4 header
TCP = 6


def relay(seconds: float, port: int, files: Sequence[int]) -> None:
    """Never returns; the files must not block."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for file in select.select(files, [], [], patience)[0]:
            for packet in read_all(file):
                host = packet[LAST_BYTE_OF_DESTINATION] if is_ipv4(packet) else 0
                if not 1 <= host <= len(files):
                    continue
                if port in ports(packet):
                    deliver(packet, files[host - 1])
                else:
                    waiting.append((time.monotonic() + seconds, files[host - 1], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, file, packet = waiting.popleft()
            deliver(packet, file)


def read_all(file: int) -> list[bytes]:
    """The packets that a device has sent."""
    packets: list[bytes] = []
    try:
        while True:
            packets.append(os.read(file, MAX_PACKET))
    except OSError:  # no more, or the device is down
        return packets


def deliver(packet: bytes, file: int) -> None:
    """Writes the packet, or drops it as a network does: the device is down, or its queue is full."""
    try:
        os.write(file, packet)
    except OSError:
        return


def is_ipv4(packet: bytes) -> bool:
    return len(packet) > LAST_BYTE_OF_DESTINATION and packet[0] >> 4 == 4


def ports(packet: bytes) -> tuple[int, ...]:
    """Source and destination of an IPv4 packet of TCP."""
    after = 4 * (packet[0] & 15)
    return struct.unpack_from(">HH", packet, after) if packet[PROTOCOL] == TCP and len(packet) >= after + 4 else ()


if __name__ == "__main__":
    end_with_parent()
    relay(float(sys.argv[1]), int(sys.argv[2]), [int(word) for word in sys.argv[3:]])
