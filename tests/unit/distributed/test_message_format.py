"""Headers and payloads, byte by byte, and the links inside one process."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bllpipe.distributed.cuda_streams import HostStreams, RingBuffer
from bllpipe.distributed.gloo import MessageBuffer
from bllpipe.distributed.local_links import LocalLinks
from bllpipe.distributed.message_format import (
    ALIGNMENT,
    HEADER_BYTES,
    TRAILER_BYTES,
    VERSION,
    Layout,
    alpha_fields,
    copy_into,
    message_of,
    parts_of,
    stats_fields,
    target_fields,
    through_wire,
)
from bllpipe.errors import WireError
from bllpipe.messages import Alpha, Message, Round, Stats, Target
from bllpipe.topology import Edge
from tests.support.waiting import PATIENCE

CPU = torch.device("cpu")
ROLES = ("block 0", "block 1")
STEP = Round("train", 5, size=3)


def alpha_layout(dtype: torch.dtype = torch.float32) -> Layout:
    return Layout(Edge("alpha", 0, 1), ROLES, alpha_fields((2, 4, 4), dtype), max_batch=4, ring=2)


def payload_of(message: Message, layout: Layout) -> Tensor:
    """The message in a buffer of its size."""
    payload = torch.empty(layout.payload_bytes(message.round.size, message.round.phase), dtype=torch.uint8)
    for part, room in zip(
        parts_of(message), layout.views(payload, message.round.size, message.round.phase), strict=True
    ):
        copy_into(part, room)
    return payload


def test_a_message_survives_packing() -> None:
    layout = Layout(Edge("target", 4, 1), ROLES, target_fields(7), max_batch=4, ring=2)
    target = Target(STEP, torch.randn(3, 7), torch.ones(3), torch.tensor([1, 2, 3]))
    payload = payload_of(target, layout)
    assert payload.numel() == layout.payload_bytes(3, "train") and payload.numel() % ALIGNMENT == 0
    found = message_of(STEP, layout.views(payload, 3, "train"), layout, CPU)
    assert isinstance(found, Target)
    assert torch.equal(found.beta_BC, target.beta_BC) and torch.equal(found.label_B, target.label_B)


def test_statistics_have_one_size_whatever_the_batch() -> None:
    layout = Layout(Edge("stats", 1, 4), ROLES, stats_fields(10, 6), max_batch=4, ring=2)
    assert layout.payload_bytes(1, "train") == layout.payload_bytes(4, "evaluate")
    stats = Stats(STEP, torch.randn(10, 6), torch.ones(10))
    found = message_of(STEP, layout.views(payload_of(stats, layout), 3, "train"), layout, CPU)
    assert isinstance(found, Stats) and torch.equal(found.sums_KC, stats.sums_KC)


def test_a_message_is_written_into_a_buffer_for_the_largest_one() -> None:
    layout, alpha = alpha_layout(torch.bfloat16), torch.randn(3, 4, 4, 2, requires_grad=True).permute(0, 3, 1, 2)
    buffer = MessageBuffer(layout)
    whole = buffer.write(Alpha(STEP, alpha))
    assert whole.data_ptr() == buffer.message_view(Round("train", 5, size=4)).data_ptr()
    assert whole.numel() == layout.message_bytes(3, "train")
    assert bytes(whole[:HEADER_BYTES].numpy()) == layout.expected_header(STEP)
    buffer.check(STEP)
    found = buffer.read(STEP, CPU)
    assert isinstance(found, Alpha) and torch.equal(found.alpha_BCHW, alpha.detach().bfloat16().float())
    with pytest.raises(WireError, match="expected.*step 6.*but block 0 sends.*step 5"):
        buffer.check(Round("train", 6, size=3))


def test_a_sender_refuses_another_shape_and_names_both_sides() -> None:
    words = (
        "edge alpha 0->1 (block 0 to block 1): at step 5 block 0 has [3, 9] to send, but block 1 expects [3, 2, 4, 4]"
    )
    with pytest.raises(WireError, match=re.escape(words)):
        MessageBuffer(alpha_layout()).write(Alpha(STEP, torch.zeros(3, 9)))


def test_the_largest_message_has_a_header_of_its_own() -> None:
    layout = alpha_layout()
    layout.compare(layout.largest(), layout.largest())
    other = Layout(layout.edge, ROLES, alpha_fields((2, 4, 5), torch.float32), max_batch=4, ring=2)
    words = (
        "expected alpha 0->1, at most 4 images, float32[4, 2, 4, 4], but block 0 sends alpha 0->1, at most 4 images, "
    )
    with pytest.raises(WireError, match=re.escape(words) + r"float32\[4, 2, 4, 5\]"):
        layout.compare(other.largest(), layout.largest())


def test_the_right_header_passes() -> None:
    layout = alpha_layout()
    header = layout.header(STEP, [torch.zeros(3, 2, 4, 4)])
    assert len(header) == HEADER_BYTES
    layout.check(header, header[:TRAILER_BYTES], STEP)


def voting_layout() -> Layout:
    fields = alpha_fields((2, 4, 4), torch.bfloat16, voted_classes=10)
    return Layout(Edge("alpha", 0, 1), ROLES, fields, max_batch=4, ring=2)


def test_votes_cost_four_bytes_a_class_and_image_and_only_in_tests() -> None:
    voting, plain = voting_layout(), alpha_layout(torch.bfloat16)
    assert voting.message_bytes(4, "train") == plain.message_bytes(4, "train") == plain.message_bytes(4, "evaluate")
    assert voting.expected_header(STEP) == plain.expected_header(STEP)
    assert voting.payload_bytes(16, "evaluate") - voting.payload_bytes(16, "train") == 16 * 4 * 10
    with pytest.raises(
        WireError, match=r"expected .* bfloat16\[4, 2, 4, 4\], but .* bfloat16\[4, 2, 4, 4\] float32\[4, 10"
    ):
        plain.compare(voting.largest(), plain.largest())


@pytest.mark.parametrize("size", [4, 3, 1])
def test_votes_stay_float32_with_activations_in_bfloat16(size: int) -> None:
    """Through a buffer of gloo, which is used again for messages of other sizes and phases, and inside a process."""
    layout, test = voting_layout(), Round("evaluate", 5, size=size)
    alpha, votes = torch.randn(size, 2, 4, 4), torch.rand(size, 10)
    buffer, wires = MessageBuffer(layout), LocalLinks(CPU, timeout=1)
    rounds = [Round("train", 4, size=4), test, Round("train", 5, size=4)]
    sender, receiver = wires.sender(layout), wires.receiver(layout, iter(rounds))
    for entry in rounds:
        sent = Alpha(entry, alpha, votes) if entry is test else Alpha(entry, torch.zeros(4, 2, 4, 4))
        assert buffer.write(sent).numel() == layout.message_bytes(entry.size, entry.phase)
        buffer.check(entry)
        sender.send(sent)
        for found in (buffer.read(entry, CPU), receiver.recv()):
            assert isinstance(found, Alpha)
            assert torch.equal(found.alpha_BCHW, sent.alpha_BCHW.bfloat16().float())
            assert (found.votes_BK is None) is (entry is not test)
            assert found.votes_BK is None or torch.equal(found.votes_BK, votes)


@pytest.mark.parametrize("size", [4, 3, 1])
def test_activations_in_eight_bits_come_with_their_ranges(size: int) -> None:
    """Through a buffer of gloo and inside a process, with votes and without: the same bits, a quarter of the bytes."""
    fields = alpha_fields((2, 4, 4), torch.uint8, voted_classes=10)
    layout, entries = replace(alpha_layout(), fields=fields), (Round("evaluate", 5, size=size), STEP)
    buffer, wires = MessageBuffer(layout), LocalLinks(CPU, timeout=1)
    sender, receiver = wires.sender(layout), wires.receiver(layout, iter(entries))
    for entry in entries:
        votes = torch.rand(entry.size, 10) if entry.phase == "evaluate" else None
        sent = Alpha(entry, torch.randn(entry.size, 2, 4, 4), votes)
        assert buffer.write(sent).numel() == layout.message_bytes(entry.size, entry.phase)
        buffer.check(entry)
        sender.send(sent)
        expected = through_wire(sent.alpha_BCHW, torch.uint8)
        assert not torch.equal(expected, sent.alpha_BCHW)
        for found in (buffer.read(entry, CPU), receiver.recv()):
            assert isinstance(found, Alpha) and torch.equal(found.alpha_BCHW, expected)
            assert (found.votes_BK is None) is (votes is None)
            assert found.votes_BK is None or (votes is not None and torch.equal(found.votes_BK, votes))
    alone = replace(layout, fields=alpha_fields((2, 4, 4), torch.uint8))
    ranges = 64  # two scales and two offsets, aligned
    assert 4 * (alone.payload_bytes(16, "train") - ranges) == alpha_layout().payload_bytes(16, "train")


def test_a_sender_in_eight_bits_refuses_another_shape_and_another_wire() -> None:
    layout = replace(alpha_layout(), fields=alpha_fields((2, 4, 4), torch.uint8))
    with pytest.raises(WireError, match=re.escape("block 0 has [3] to send, but block 1 expects [3, 2, 4, 4]")):
        MessageBuffer(layout).write(Alpha(STEP, torch.zeros(3)))
    words = "float32[4, 2, 4, 4], but block 0 sends alpha 0->1, at most 4 images, uint8[4, 2, 4, 4] float32[2, 2]"
    with pytest.raises(WireError, match=re.escape(words)):
        layout.compare(layout.largest(), alpha_layout().largest())


@pytest.mark.parametrize(
    ("position", "words"),
    [
        (0, "sends bytes that are no bllpipe header"),
        (7, f"sends a header of version {VERSION ^ 1}, not {VERSION}"),
        (8, "sends target 0->1"),
        (16, "sends alpha 1->1"),
        (24, "sends alpha 0->0"),
        (32, "evaluate step 5"),
        (40, "train step 4"),
        (48, "batch 1 of"),
        (56, "shard 1 of 3 images"),
        (64, "of 2 images"),
        (80, "bfloat16[3, 2, 4, 4]"),
        (96, "float32[2, 2, 4, 4]"),
        (200, "but block 0 sends"),
        (255, "but block 0 sends"),
    ],
)
def test_every_wrong_byte_is_noticed_and_described(position: int, words: str) -> None:
    layout = alpha_layout()
    right = layout.header(STEP, [torch.zeros(3, 2, 4, 4)])
    header = bytearray(right)
    header[position] ^= 1
    with pytest.raises(WireError, match=re.escape(words)) as caught:
        layout.check(bytes(header), right[:TRAILER_BYTES], STEP)
    assert str(caught.value).startswith("edge alpha 0->1 (block 0 to block 1): block 1 expected")


@pytest.mark.parametrize("earlier", [Round("train", 4, size=3), Round("train", 5, size=3, shard=1)], ids=str)
@pytest.mark.parametrize("kept", [HEADER_BYTES, HEADER_BYTES + 64, -TRAILER_BYTES])
def test_a_message_that_was_cut_short_is_no_message(kept: int, earlier: Round) -> None:
    """gloo fills as much of a receive as there is, and says nothing."""
    layout = alpha_layout()
    buffers = {entry: MessageBuffer(layout) for entry in (STEP, earlier)}
    sent, before = (buffer.write(Alpha(entry, torch.ones(3, 2, 4, 4))) for entry, buffer in buffers.items())
    before[:kept] = sent[:kept]  # the receiver's buffer has held an earlier message
    with pytest.raises(WireError, match=r"block 1 got a truncated message for step 5: expected 704 bytes from block 0"):
        list(buffers.values())[1].check(STEP)


@pytest.mark.parametrize("kept", [HEADER_BYTES, HEADER_BYTES + 64, -TRAILER_BYTES])
def test_memory_that_held_the_same_message_completes_none(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run behind another one in the same process gets its memory."""
    layout = alpha_layout()
    whole = MessageBuffer(layout).write(Alpha(STEP, torch.ones(3, 2, 4, 4)))

    def used_memory(size: int, **how: Any) -> torch.Tensor:
        memory = torch.full((size,), 255, **how)
        memory[: len(whole)] = whole
        return memory

    monkeypatch.setattr(torch, "empty", used_memory)
    buffer = MessageBuffer(layout)
    arrived = whole[:kept]
    buffer.all_bytes[: len(arrived)] = arrived
    with pytest.raises(WireError, match="truncated message for step 5"):
        buffer.check(STEP)


def test_random_headers_never_crash_the_description() -> None:
    layout, generator = alpha_layout(), torch.Generator().manual_seed(0)
    good = layout.expected_header(STEP)
    for _ in range(200):
        noise = bytes(torch.randint(0, 256, (HEADER_BYTES - 8,), generator=generator, dtype=torch.uint8).tolist())
        with pytest.raises(WireError, match="but block 0 sends"):
            layout.check(good[:8] + noise, good[:TRAILER_BYTES], STEP)


def test_local_links_give_what_the_wire_would() -> None:
    wires = LocalLinks(CPU, timeout=PATIENCE)
    layout = alpha_layout(torch.bfloat16)
    sender, receiver = wires.sender(layout), wires.receiver(layout, iter([STEP]))
    alpha = torch.randn(3, 2, 4, 4)
    sender.send(Alpha(STEP, alpha))
    found = receiver.recv()
    assert isinstance(found, Alpha)
    assert torch.equal(found.alpha_BCHW, alpha.bfloat16().float()) and found.alpha_BCHW.data_ptr() != alpha.data_ptr()


def test_local_links_check_the_round() -> None:
    wires = LocalLinks(CPU, timeout=PATIENCE)
    layout = alpha_layout()
    sender, receiver = wires.sender(layout), wires.receiver(layout, iter([Round("train", 6, size=3)]))
    sender.send(Alpha(STEP, torch.zeros(3, 2, 4, 4)))
    with pytest.raises(WireError, match="block 1 expected.*step 6.*but block 0 sends.*step 5"):
        receiver.recv()


def test_local_links_time_out_in_words() -> None:
    wires = LocalLinks(CPU, timeout=0.05)
    layout = alpha_layout()
    with pytest.raises(WireError, match="block 1 waited 0.05 s for step 5; no message arrived"):
        wires.receiver(layout, iter([STEP])).recv()
    sender = wires.sender(layout)
    with pytest.raises(WireError, match="block 0 could not send step 5 for 0.05 s"):
        for _ in range(3):
            sender.send(Alpha(STEP, torch.zeros(3, 2, 4, 4)))


def test_closed_wires_end_every_wait() -> None:
    wires = LocalLinks(CPU, timeout=PATIENCE)
    receiver = wires.receiver(alpha_layout(), iter([STEP]))
    wires.close(WireError("block 3 failed"))
    with pytest.raises(WireError, match="block 3 failed"):
        receiver.recv()


@pytest.mark.parametrize("received", [torch.bfloat16, torch.float32], ids=str)
def test_slots_in_the_format_of_their_reader_are_read_where_they_lie(received: torch.dtype) -> None:
    """Anything else is a copy, at another place every time."""
    ring = RingBuffer(replace(alpha_layout(torch.bfloat16), received=received), 2, HostStreams(), CPU)
    (slot, _), places = ring._slots, []
    for step in range(4):
        entry, sent = Round("train", step, size=4), torch.randn(4, 2, 4, 4)
        ring.fill(Alpha(entry, sent))
        found = ring.take(entry)
        assert isinstance(found, Alpha) and found.alpha_BCHW.dtype == received
        assert torch.equal(found.alpha_BCHW.float(), sent.bfloat16().float())
        places.append(found.alpha_BCHW.data_ptr())
    in_first_slot = [place == slot.tensors[0].data_ptr() for place in places]
    assert in_first_slot == ([True, False] * 2 if received == torch.bfloat16 else [False] * 4)
