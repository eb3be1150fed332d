"""Headers and closings of messages from a peer that is not ours, or not where it should be."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import torch

from benchmarks.chaos.cases import Case, Families
from benchmarks.chaos.hostile import refused
from bllpipe.distributed.message_format import (
    HEADER_BYTES,
    MAGIC,
    TRAILER_BYTES,
    Layout,
    alpha_fields,
    stats_fields,
    target_fields,
)
from bllpipe.messages import Round
from bllpipe.topology import Edge

ROLES = ("block 0", "block 1")
LAYOUTS = [
    Layout(Edge("alpha", 0, 1), ROLES, alpha_fields((2, 4, 4), torch.bfloat16), max_batch=4, ring=2),
    Layout(Edge("target", 0, 1), ROLES, target_fields(7), max_batch=4, ring=2),
    Layout(Edge("stats", 0, 1), ROLES, stats_fields(10, 6), max_batch=4, ring=2),
]
ROUNDS = [Round("train", 3, 0, 5, 3), Round("evaluate", 2**40, 0, 1, 4)]


def header_families() -> Families:
    return {"headers of messages": _make}


def _make(draws: random.Random, folder: Path) -> Case:
    """Of a message, of its closing alone, or of the largest message, on which both ends agree before the first."""
    layout, entry = draws.choice(LAYOUTS), draws.choice(ROUNDS)
    header = layout.expected_header(entry)
    match draws.choice(["message", "closing", "largest"]):
        case "message":
            kind, changed = _changed(draws, layout, header)
            return refused(_told(layout, kind, changed), lambda: layout.check(changed, changed[:TRAILER_BYTES], entry))
        case "closing":
            trailer = draws.randbytes(draws.choice([TRAILER_BYTES, TRAILER_BYTES, 0, 1])) or bytes(TRAILER_BYTES)
            return refused(_told(layout, "the closing", trailer), lambda: layout.check(header, trailer, entry))
        case _:
            kind, changed = _changed(draws, layout, layout.largest())
            return refused(_told(layout, kind, changed), lambda: layout.compare(changed, layout.largest()))


def _told(layout: Layout, kind: str, changed: bytes) -> str:
    return f"{layout.edge.kind}, {kind}: {changed[:64].hex()}"


def _changed(draws: random.Random, layout: Layout, expected: bytes) -> tuple[str, bytes]:
    """Something else than ``expected``, and what was done to it."""
    kind, content = draws.choice(["a bit", "a number", "noise", "the length", "the round"]), bytearray(expected)
    match kind:
        case "a bit":
            content[draws.randrange(HEADER_BYTES)] ^= 1 << draws.randrange(8)
        case "a number":
            number = draws.choice([-1, -(2**63), 2**63 - 1, 99])
            struct.pack_into("<q", content, 8 * draws.randrange(1, HEADER_BYTES // 8), number)
        case "noise":
            content[len(MAGIC) * draws.randrange(2) :] = draws.randbytes(HEADER_BYTES)
            del content[HEADER_BYTES:]
        case "the length":
            lengths = [b"", expected[: draws.randrange(HEADER_BYTES)], expected + b"\0", expected * 2]
            content = bytearray(draws.choice(lengths))
        case "the round":
            content = bytearray(layout.expected_header(Round("train", draws.randrange(10, 99), 0, 5, 3)))
    return kind, bytes(content)
