"""Two real processes and their gloo links: what arrives, what is refused, and what a dead peer looks like."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bllpipe.errors import WireError
from bllpipe.ports import Alpha, Round, Target
from bllpipe.topology import Edge
from bllpipe.wire.gloo import GlooReceiver, GlooSender
from bllpipe.wire.layout import Field, Layout, alpha_fields, target_fields
from tests.ranks.spawning import run_ranks

pytestmark = pytest.mark.ranks
CPU = torch.device("cpu")
EDGE = Edge("alpha", 0, 1)
ROUNDS = [Round("train", 0, size=4), Round("train", 1, size=4), Round("evaluate", 2, batch=0, size=4)]
ROUNDS.append(Round("evaluate", 2, batch=1, size=3))


def layout(fields: tuple[Field, ...] = alpha_fields((2, 3), torch.float32), edge: Edge = EDGE, ring: int = 2) -> Layout:
    return Layout(edge, ("block 0", "block 1"), fields, max_batch=4, ring=ring)


def alpha(entry: Round, shape: tuple[int, ...] = (2, 3)) -> Alpha:
    generator = torch.Generator().manual_seed(entry.step * 10 + entry.batch)
    return Alpha(entry, torch.randn(entry.size, *shape, generator=generator))


def refusal(receiver: GlooReceiver) -> str:
    try:
        receiver.recv()
    except WireError as error:
        return str(error)
    return "no error"


def deliver(rank: int, group: Any, wire: torch.dtype) -> list[list[float]]:
    """All rounds over one edge; both ends return what they sent or got."""
    fields = alpha_fields((2, 3), wire)
    if rank == 0:
        sender = GlooSender(layout(fields), group, in_flight=2, timeout=20)
        for entry in ROUNDS:
            sender.send(alpha(entry))
        sender.finish()
        return [alpha(entry).alpha_BCHW.to(wire).float().flatten().tolist() for entry in ROUNDS]
    receiver = GlooReceiver(layout(fields), group, iter(ROUNDS), CPU, timeout=20)
    return [receiver.recv().alpha_BCHW.flatten().tolist() for _ in ROUNDS]  # type: ignore[union-attr]  # Alphas


def deliver_target(rank: int, group: Any) -> list[list[float]]:
    shape, entry = layout(target_fields(5), Edge("target", 0, 1)), ROUNDS[3]
    beta_BC, known_B, label_B = torch.arange(15.0).view(3, 5), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([7, 8, 9])
    if rank == 0:
        sender = GlooSender(shape, group, in_flight=1, timeout=20)
        sender.send(Target(entry, beta_BC, known_B, label_B))
        sender.finish()
        return [beta_BC.flatten().tolist(), known_B.tolist(), label_B.tolist()]
    receiver = GlooReceiver(shape, group, iter([entry]), CPU, timeout=20)
    target: Any = receiver.recv()
    return [target.beta_BC.flatten().tolist(), target.known_B.tolist(), target.label_B.tolist()]


def mismatch(rank: int, group: Any, fields: tuple[Field, ...], entry: Round, message: Any) -> str:
    """Rank 0 sends ``message`` with ``fields``; rank 1 expects round 0 of the plain layout."""
    if rank == 0:
        GlooSender(layout(fields), group, in_flight=1, timeout=20).send(message)
        return ""
    return refusal(GlooReceiver(layout(), group, iter([ROUNDS[0]]), CPU, timeout=20))


def resized(rank: int, group: Any) -> str:
    """A block whose alpha has another shape in a later step; the receiver must not be harmed."""
    if rank == 1:
        receiver = GlooReceiver(layout(), group, iter(ROUNDS), CPU, timeout=0.3)
        receiver.recv()
        return refusal(receiver)
    sender = GlooSender(layout(), group, in_flight=1, timeout=20)
    sender.send(alpha(ROUNDS[0]))
    try:
        sender.send(alpha(ROUNDS[1], (5, 7)))
    except WireError as error:
        return str(error)
    return "no error"


def foreign(rank: int, group: Any) -> str:
    """A peer that is not ours sends 256 bytes of something else."""
    if rank == 0:
        dist.send(torch.full((256,), 65, dtype=torch.uint8), 1, group=group)
        return ""
    return refusal(GlooReceiver(layout(), group, iter(ROUNDS), CPU, timeout=20))


def back_pressure(rank: int, group: Any) -> tuple[int, float]:
    """How many messages a sender gets rid of while nobody takes them: the ring, and in_flight."""
    many = [Round("train", step, size=4) for step in range(20)]
    if rank == 0:
        sender, sent = GlooSender(layout(), group, in_flight=2, timeout=1.0), 0
        try:
            for entry in many:
                sender.send(alpha(entry))
                sent += 1
        except WireError as error:
            assert "block 1 took nothing for 1 s" in str(error)
        return sent, 0.0
    GlooReceiver(layout(ring=2), group, iter(many), CPU, timeout=20)
    time.sleep(2.5)
    return 0, 0.0


def silence(rank: int, group: Any) -> str:
    if rank == 0:
        return ""
    return refusal(GlooReceiver(layout(), group, iter(ROUNDS), CPU, timeout=0.3))


def everything(rank: int) -> dict[str, Any]:
    groups: Iterator[Any] = iter([dist.new_group([0, 1]) for _ in range(10)])
    shape_2, other_step = (2, 2), Round("train", 7, size=4)
    half = alpha_fields((2, 3), torch.bfloat16)
    found = {
        "fp32": deliver(rank, next(groups), torch.float32),
        "bf16": deliver(rank, next(groups), torch.bfloat16),
        "target": deliver_target(rank, next(groups)),
        "shape": mismatch(
            rank, next(groups), alpha_fields(shape_2, torch.float32), ROUNDS[0], alpha(ROUNDS[0], shape_2)
        ),
        "dtype": mismatch(rank, next(groups), half, ROUNDS[0], alpha(ROUNDS[0])),
        "step": mismatch(rank, next(groups), layout().fields, other_step, alpha(other_step)),
        "resized": resized(rank, next(groups)),
        "foreign": foreign(rank, next(groups)),
        "pressure": back_pressure(rank, next(groups)),
        "silence": silence(rank, next(groups)),
    }
    dist.barrier()  # rank 0 must not be gone while rank 1 still waits for nothing
    return found


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_ranks(everything, 2)


@pytest.mark.parametrize("wire", ["fp32", "bf16", "target"])
def test_what_is_sent_arrives(results: list[dict[str, Any]], wire: str) -> None:
    if wire == "target":
        assert results[0][wire] == results[1][wire]
    else:
        assert len(results[1][wire]) == len(ROUNDS) and results[0][wire] == results[1][wire]


@pytest.mark.parametrize(
    ("case", "expected", "found"),
    [
        ("shape", "float32[4, 2, 3]", "float32[4, 2, 2]"),
        ("dtype", "float32[4, 2, 3]", "bfloat16[4, 2, 3]"),
        ("step", "train step 0", "train step 7"),
        ("foreign", "opening", "no bllpipe header"),
    ],
)
def test_a_wrong_message_is_an_exception_that_names_both_sides(
    results: list[dict[str, Any]], case: str, expected: str, found: str
) -> None:
    text = results[1][case]
    assert text.startswith("edge alpha 0->1 (block 0 to block 1): block 1 expected")
    assert expected in text.split("but got")[0] and found in text.split("but got")[1]


def test_what_does_not_fit_is_refused_before_it_leaves(results: list[dict[str, Any]]) -> None:
    assert "at step 1 block 0 has [4, 5, 7] to send, but block 1 expects [4, 2, 3]" in results[0]["resized"]
    assert "nothing came" in results[1]["resized"]


def test_sends_in_flight_are_bounded(results: list[dict[str, Any]]) -> None:
    sent = results[0]["pressure"][0]
    assert sent == 4, "two in the ring, two in flight"


def test_waiting_ends_with_the_timeout(results: list[dict[str, Any]]) -> None:
    assert "block 1 waited 0.3 s for a message from block 0; nothing came" in results[1]["silence"]


def survive(rank: int) -> tuple[str, float]:
    """Rank 0 is gone after its first message; rank 1 tells what it saw and how long that took."""
    group = dist.new_group([0, 1])
    if rank == 0:
        sender = GlooSender(layout(), group, in_flight=2, timeout=20)
        sender.send(alpha(ROUNDS[0]))
        sender.finish()
        return "", 0.0  # the process ends, and with it the connection
    receiver = GlooReceiver(layout(), group, iter(ROUNDS), CPU, timeout=20)
    receiver.recv()
    start = time.monotonic()
    return refusal(receiver), time.monotonic() - start


def test_a_dead_peer_is_noticed_at_once_and_named() -> None:
    text, seconds = run_ranks(survive, 2)[1]
    assert text.startswith("edge alpha 0->1 (block 0 to block 1): block 0 is gone at step 1")
    assert seconds < 10
