"""Two real processes and their gloo links: what arrives, what is refused, and what a dead peer looks like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bllpipe.distributed.gloo import GlooReceiver, GlooSender, MessageBuffer
from bllpipe.distributed.message_format import VERSION, Field, Layout, alpha_fields, target_fields
from bllpipe.distributed.process_links import EdgeHandshake
from bllpipe.errors import WireError
from bllpipe.messages import Alpha, Round, Target
from bllpipe.topology import Edge
from tests.support.spawning import run_ranks
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.ranks
CPU = torch.device("cpu")
SHORT = 0.3  # seconds, where nothing is to come
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
        sender = GlooSender(layout(fields), group, in_flight=2, timeout=PATIENCE)
        for entry in ROUNDS:
            sender.send(alpha(entry))
        sender.finish()
        return [alpha(entry).alpha_BCHW.to(wire).float().flatten().tolist() for entry in ROUNDS]
    receiver = GlooReceiver(layout(fields), group, iter(ROUNDS), CPU, timeout=PATIENCE)
    return [receiver.recv().alpha_BCHW.flatten().tolist() for _ in ROUNDS]  # type: ignore[union-attr]  # Alphas


def deliver_target(rank: int, group: Any) -> list[list[float]]:
    shape, entry = layout(target_fields(5), Edge("target", 0, 1)), ROUNDS[3]
    beta_BC, known_B, label_B = torch.arange(15.0).view(3, 5), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([7, 8, 9])
    if rank == 0:
        sender = GlooSender(shape, group, in_flight=1, timeout=PATIENCE)
        sender.send(Target(entry, beta_BC, known_B, label_B))
        sender.finish()
        return [beta_BC.flatten().tolist(), known_B.tolist(), label_B.tolist()]
    receiver = GlooReceiver(shape, group, iter([entry]), CPU, timeout=PATIENCE)
    target: Any = receiver.recv()
    return [target.beta_BC.flatten().tolist(), target.known_B.tolist(), target.label_B.tolist()]


class Ends:
    """Both ends of the edge, which say over ``store`` what they mean before they send: as ProcessLinks has them."""

    def __init__(self, rank: int, group: Any, store: Any, ours: Layout) -> None:
        self.rank, self.group, self.ours = rank, group, ours
        self.handshake = EdgeHandshake(store)
        self.handshake.publish(ours, "src" if rank == 0 else "dst")

    def exchange(self, sent: Any) -> str:
        """Rank 0 sends ``sent``, rank 1 expects round 0: what goes wrong, in the words of this rank."""
        try:
            self.handshake.compare()
            if self.rank == 1:
                GlooReceiver(self.ours, self.group, iter([ROUNDS[0]]), CPU, timeout=PATIENCE).recv()
            else:
                GlooSender(self.ours, self.group, in_flight=1, timeout=PATIENCE).send(sent)
        except WireError as error:
            return str(error)
        return "no error"


def mismatch(rank: int, group: Any, store: Any, theirs: Layout, sent: Any) -> str:
    """Rank 0 means ``theirs`` by the edge, and sends ``sent``; rank 1 means the plain layout."""
    return Ends(rank, group, store, theirs if rank == 0 else layout()).exchange(sent)


def speaks(rank: int, group: Any, store: Any, published: bytes | None) -> str:
    """Rank 0 has said ``published`` of the edge, or nothing; it must not matter what it would send."""
    if rank == 0:
        if published is not None:
            store.set("layout/alpha 0->1/src", published.hex())
        return ""
    return Ends(rank, group, store, layout()).exchange(None)


def resized(rank: int, group: Any) -> str:
    """A block whose alpha has another shape in a later step; the receiver must not be harmed."""
    if rank == 1:
        receiver = GlooReceiver(layout(), group, iter(ROUNDS), CPU, timeout=PATIENCE)
        receiver.recv()
        receiver._timeout = SHORT
        return refusal(receiver)
    sender = GlooSender(layout(), group, in_flight=1, timeout=PATIENCE)
    sender.send(alpha(ROUNDS[0]))
    try:
        sender.send(alpha(ROUNDS[1], (5, 7)))
    except WireError as error:
        return str(error)
    return "no error"


def raw(rank: int, group: Any, content: bytes, rounds: Sequence[Round] = ROUNDS) -> str:
    """A peer that has said the right thing, and then sends ``content``; expected are the messages of ``rounds``."""
    if rank == 0:
        dist.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), 1, group=group)
        return ""
    return refusal(GlooReceiver(layout(), group, iter(rounds), CPU, timeout=PATIENCE))


def message(entry: Round) -> bytes:
    """The bytes of a whole message."""
    return bytes(MessageBuffer(layout()).write(alpha(entry)).numpy())


def other_version(content: bytes) -> bytes:
    return content[:7] + bytes([VERSION - 1]) + content[8:]


def back_pressure(rank: int, group: Any, store: Any) -> str:
    """What a sender gets rid of while the other rank takes nothing: the ring, and in_flight. Then it is told so."""
    many = [Round("train", step, size=4) for step in range(20)]
    if rank == 1:
        GlooReceiver(layout(ring=2), group, iter(many), CPU, timeout=PATIENCE)
        store.wait(["refused"])
        return ""
    sender = GlooSender(layout(), group, in_flight=2, timeout=PATIENCE)
    for entry in many[:4]:
        sender.send(alpha(entry))
    sender._timeout = SHORT
    with pytest.raises(WireError) as refused:
        sender.send(alpha(many[4]))
    store.set("refused", "")
    return str(refused.value)


def post_ahead(rank: int, group: Any, store: Any) -> list[list[float]]:
    """Nothing is sent before a receive is posted for every buffer."""
    if rank == 0:
        store.wait(["posted"])
        sender = GlooSender(layout(), group, in_flight=2, timeout=PATIENCE)
        for entry in ROUNDS:
            sender.send(alpha(entry))
        sender.finish()
        return [alpha(entry).alpha_BCHW.flatten().tolist() for entry in ROUNDS]
    receiver = GlooReceiver(layout(ring=3), group, iter(ROUNDS), CPU, timeout=PATIENCE)
    wait_until(lambda: len(receiver._posted) == 2)  # and for the third one a thread waits
    store.set("posted", "")
    return [receiver.recv().alpha_BCHW.flatten().tolist() for _ in ROUNDS]  # type: ignore[union-attr]  # Alphas


def silence(rank: int, group: Any) -> str:
    if rank == 0:
        return ""
    return refusal(GlooReceiver(layout(), group, iter(ROUNDS), CPU, timeout=SHORT))


def everything(rank: int, folder: str) -> dict[str, Any]:
    groups: Iterator[Any] = iter([dist.new_group([0, 1]) for _ in range(30)])
    shape_2, other_step, whole = (2, 2), Round("train", 7, size=4), message(ROUNDS[0])
    one = Round("evaluate", 2, batch=1, size=1)
    narrow, half = layout(alpha_fields(shape_2, torch.float32)), layout(alpha_fields((2, 3), torch.bfloat16))
    large = layout(alpha_fields((200, 300), torch.float32))

    def differ(name: str, theirs: Layout, entry: Round, shape: tuple[int, ...] = (2, 3)) -> str:
        store = dist.FileStore(f"{folder}/{name}", 2)
        return mismatch(rank, next(groups), store, theirs, alpha(entry, shape))

    def says(name: str, published: bytes | None) -> str:
        store = dist.FileStore(f"{folder}/{name}", 2)
        store.set_timeout(timedelta(seconds=0.5))
        return speaks(rank, next(groups), store, published)

    found = {
        "fp32": deliver(rank, next(groups), torch.float32),
        "bf16": deliver(rank, next(groups), torch.bfloat16),
        "target": deliver_target(rank, next(groups)),
        "shape": differ("shape", narrow, ROUNDS[0], shape_2),
        "longer": differ("longer", large, ROUNDS[0], (200, 300)),
        "dtype": differ("dtype", half, ROUNDS[0]),
        "step": differ("step", layout(), other_step),
        "says nothing": says("nothing", None),
        "says another magic": says("magic", b"\x80" + layout().largest()[1:]),
        "says another version": says("version", other_version(layout().largest())),
        "resized": resized(rank, next(groups)),
        "sends another magic": raw(rank, next(groups), bytes(len(whole))),
        "sends another version": raw(rank, next(groups), other_version(whole)),
        "sends 256 bytes": raw(rank, next(groups), b"A" * 256),
        "sends a larger batch": raw(rank, next(groups), message(ROUNDS[2]), [one]),
        "sends a header": raw(rank, next(groups), whole[:256]),
        "sends all but the end": raw(rank, next(groups), whole[:-64]),
        "pressure": back_pressure(rank, next(groups), dist.FileStore(f"{folder}/pressure", 2)),
        "silence": silence(rank, next(groups)),
        "ahead": post_ahead(rank, next(groups), dist.FileStore(f"{folder}/ahead", 2)),
    }
    dist.barrier()  # rank 0 must not be gone while rank 1 still waits for nothing
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(everything, 2, str(tmp_path_factory.mktemp("stores")))


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
        ("longer", "float32[4, 2, 3]", "float32[4, 200, 300]"),
        ("dtype", "float32[4, 2, 3]", "bfloat16[4, 2, 3]"),
        ("says another magic", "at most 4 images", "bytes that are no bllpipe header"),
        ("says another version", "at most 4 images", f"a header of version {VERSION - 1}, not {VERSION}"),
        ("step", "train step 0", "train step 7"),
        ("sends another magic", "train step 0", "bytes that are no bllpipe header"),
        ("sends another version", "train step 0", f"a header of version {VERSION - 1}, not {VERSION}"),
        ("sends a larger batch", "of 1 images", "of 4 images"),
        ("sends 256 bytes", "train step 0", "bytes that are no bllpipe header (41 41 41"),
    ],
)
def test_a_wrong_message_is_an_exception_that_names_both_sides(
    results: list[dict[str, Any]], case: str, expected: str, found: str
) -> None:
    """What the two ends say to each other before is compared by both; what then is sent, by the receiver."""
    text = results[1][case]
    assert text.startswith("edge alpha 0->1 (block 0 to block 1): block 1 expected")
    assert expected in text.split("but block 0 sends")[0] and found in text.split("but block 0 sends")[1]
    if case in ("shape", "longer", "dtype"):
        assert results[0][case] == text, "nothing was sent"


@pytest.mark.parametrize("case", ["sends a header", "sends all but the end"])
def test_a_part_of_a_message_is_no_message(results: list[dict[str, Any]], case: str) -> None:
    words = "edge alpha 0->1 (block 0 to block 1): block 1 got a truncated message for step 0: expected"
    assert results[1][case].startswith(words)


def test_a_peer_that_has_not_said_what_it_sends_is_not_listened_to(results: list[dict[str, Any]]) -> None:
    text = results[1]["says nothing"]
    assert text.startswith("edge alpha 0->1 (block 0 to block 1): block 0 has not published the layout of its messages")


def test_what_does_not_fit_is_refused_before_it_leaves(results: list[dict[str, Any]]) -> None:
    assert "at step 1 block 0 has [4, 5, 7] to send, but block 1 expects [4, 2, 3]" in results[0]["resized"]
    assert "none arrived" in results[1]["resized"]


def test_sends_in_flight_are_bounded(results: list[dict[str, Any]]) -> None:
    """Two in the ring, two in flight, and no fifth."""
    assert "block 1 received nothing for 0.3 s; block 0 was at step 4" in results[0]["pressure"]


def test_a_receive_is_posted_for_every_free_buffer(results: list[dict[str, Any]]) -> None:
    """One at a time would be one message a round trip of the link."""
    assert len(results[1]["ahead"]) == len(ROUNDS) and results[0]["ahead"] == results[1]["ahead"]


def test_waiting_ends_with_the_timeout(results: list[dict[str, Any]]) -> None:
    assert "block 1 waited 0.3 s for a message from block 0; none arrived" in results[1]["silence"]


def survive(rank: int) -> list[str]:
    """Rank 0 is gone after its first message on two edges; rank 1, with one or with four receives posted, tells what it
    saw."""
    groups = [dist.new_group([0, 1]) for _ in range(2)]
    if rank == 0:
        for group in groups:
            sender = GlooSender(layout(), group, in_flight=2, timeout=PATIENCE)
            sender.send(alpha(ROUNDS[0]))
            sender.finish()
        return []  # the process ends, and with it the connections
    pairs = zip((1, 4), groups, strict=True)
    receivers = [GlooReceiver(layout(ring=ring), group, iter(ROUNDS), CPU, timeout=PATIENCE) for ring, group in pairs]
    for receiver in receivers:
        receiver.recv()
    return [refusal(receiver) for receiver in receivers]


def test_a_dead_peer_is_noticed_before_the_timeout_and_named() -> None:
    """Of several messages that are missing, the first one is named."""
    for text in run_ranks(survive, 2)[1]:
        assert text.startswith("edge alpha 0->1 (block 0 to block 1): block 0 is gone at step 1")
