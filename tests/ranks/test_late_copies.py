"""Copies between a GPU and pinned memory end later than the call that asks for them: the links wait where they must.

Two real processes on gloo, with streams whose marks are reached only when somebody waits for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bllpipe.distributed.cuda_streams import HostStreams
from bllpipe.distributed.gloo import GlooReceiver, GlooSender, MessageBuffer
from bllpipe.messages import Message
from tests.ranks.test_gloo_links import CPU, ROUNDS, alpha, layout
from tests.support.spawning import run_ranks
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.ranks


class Late(HostStreams):
    """Streams that do nothing before somebody waits for a mark: then ``on_wait`` happens."""

    def __init__(self, on_wait: Callable[[], object]) -> None:
        self.on_wait = on_wait

    def record(self) -> Any:
        return self

    def synchronize(self) -> None:
        self.on_wait()


def send_late() -> None:
    """Messages that are written into their packets only when the sender waits for that."""
    written, copies = MessageBuffer.write, list[Callable[[], Any]]()

    def later(packet: MessageBuffer, message: Message) -> None:
        copies.append(lambda: written(packet, message))

    MessageBuffer.write = later  # type: ignore[method-assign,assignment]  # this process is the test's own
    late = Late(lambda: copies.pop(0)())
    sender = GlooSender(layout(), dist.group.WORLD, in_flight=2, timeout=PATIENCE, open_streams=lambda device: late)
    for entry in ROUNDS:
        sender.send(alpha(entry))
    sender.finish()
    assert not copies


def read_late() -> list[list[float]]:
    """Messages that are read from their packets only when all have been asked for that fit into the ring."""
    may_refill, asked, found = threading.Event(), threading.Event(), list[torch.Tensor]()

    def wait() -> None:
        asked.set()
        assert may_refill.wait(PATIENCE)

    receiver = GlooReceiver(
        layout(ring=1), dist.group.WORLD, iter(ROUNDS), CPU, timeout=PATIENCE, open_streams=lambda device: Late(wait)
    )
    first: Any = receiver.recv()
    rest = threading.Thread(target=lambda: found.extend(_all_copied(receiver)), daemon=True)
    rest.start()
    assert asked.wait(PATIENCE), "the packet was refilled although its reading was not over"
    values = [first.alpha_BCHW.flatten().tolist()]
    may_refill.set()
    rest.join(PATIENCE)
    return values + [tensor.flatten().tolist() for tensor in found]


def _all_copied(receiver: GlooReceiver) -> list[torch.Tensor]:
    messages: Any = (receiver.recv() for _ in ROUNDS[1:])
    return [message.alpha_BCHW.clone() for message in messages]


def exchange(rank: int) -> list[list[float]]:
    if rank == 0:
        send_late()
        return [alpha(entry).alpha_BCHW.flatten().tolist() for entry in ROUNDS]
    return read_late()


def test_a_packet_is_sent_when_it_is_written_and_refilled_when_it_is_read() -> None:
    sent, got = run_ranks(exchange, 2)
    assert got == sent
