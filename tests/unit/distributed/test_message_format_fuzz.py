"""Whatever a peer sends, it is the message that must come next or a WireError that names both sides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bllpipe.distributed.message_format import DTYPES, HEADER_BYTES, MAGIC, TRAILER_BYTES, Field, Layout
from bllpipe.errors import WireError
from bllpipe.messages import Round
from bllpipe.topology import Edge
from tests.support.fuzzing import fuzz

NUMBERS = st.integers(0, 2**62)
ROUNDS = st.builds(Round, st.sampled_from(["train", "evaluate"]), NUMBERS, NUMBERS, NUMBERS, st.integers(1, 4))
FIELDS = st.builds(
    Field,
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.booleans(),
    st.sampled_from([None, "train", "evaluate"]),
)
LAYOUTS = st.builds(
    Layout,
    st.builds(Edge, st.sampled_from(["alpha", "target", "stats"]), st.integers(0, 99), st.integers(0, 99)),
    st.just(("block 3", "block 4")),
    st.lists(FIELDS, min_size=1, max_size=3).map(tuple),
    max_batch=st.just(4),
    ring=st.just(2),
)


@fuzz(300)
@given(LAYOUTS, ROUNDS, st.binary(max_size=HEADER_BYTES + 1), st.booleans())
def test_any_bytes_are_refused_in_words(layout: Layout, entry: Round, noise: bytes, is_ours: bool) -> None:
    header = (MAGIC + noise if is_ours else noise)[: max(len(noise), HEADER_BYTES)]
    with pytest.raises(
        WireError, match=r"^edge \w+ \d+->\d+ \(block 3 to block 4\): block 4 expected .*, but block 3 "
    ):
        layout.check(header, header[:TRAILER_BYTES], entry)


@fuzz(300)
@given(LAYOUTS, ROUNDS, st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_no_byte_of_a_header_can_change(layout: Layout, entry: Round, place: int, change: int) -> None:
    header = bytearray(layout.expected_header(entry))
    layout.check(bytes(header), bytes(header[:TRAILER_BYTES]), entry)
    header[place] ^= change
    with pytest.raises(WireError, match="but block 3 sends"):
        layout.check(bytes(header), bytes(header[:TRAILER_BYTES]), entry)


@fuzz(200)
@given(LAYOUTS, ROUNDS, ROUNDS)
def test_a_message_of_another_round_is_another_message(layout: Layout, one: Round, two: Round) -> None:
    def place(entry: Round) -> tuple[object, ...]:
        return entry.phase, entry.step, entry.batch, entry.size

    same = layout.expected_header(one) == layout.expected_header(two)
    assert same == (place(one) == place(two))


@fuzz(200)
@given(LAYOUTS, ROUNDS)
def test_what_is_put_into_a_payload_is_what_is_found_there(layout: Layout, entry: Round) -> None:
    tensors = [
        torch.arange(float(torch.Size(shape).numel())).to(dtype).reshape(shape)
        for dtype, shape in layout.shapes(entry.size, entry.phase)
    ]
    header = layout.header(entry, tensors)
    layout.check(header, header[:TRAILER_BYTES], entry)
    payload = torch.zeros(layout.payload_bytes(entry.size, entry.phase), dtype=torch.uint8)
    for view, tensor in zip(layout.views(payload, entry.size, entry.phase), tensors, strict=True):
        view.copy_(tensor)
    found = layout.views(payload.clone(), entry.size, entry.phase)
    assert all(torch.equal(one, two) and one.dtype == two.dtype for one, two in zip(found, tensors, strict=True))
