"""Headers of messages from a peer that is not ours, or not where it should be."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import torch

from benchmarks.chaos_hostile import refused
from benchmarks.chaos_cases import Case, Families
from bllpipe.ports import Round
from bllpipe.topology import Edge
from bllpipe.wire.layout import HEADER_BYTES, MAGIC, Layout, alpha_fields, stats_fields, target_fields

ROLES = ("block 0", "block 1")
LAYOUTS = [
    Layout(Edge("alpha", 0, 1), ROLES, alpha_fields((2, 4, 4), torch.bfloat16), max_batch=4, ring=2),
    Layout(Edge("target", 0, 1), ROLES, target_fields(7), max_batch=4, ring=2),
    Layout(Edge("stats", 0, 1), ROLES, stats_fields(10, 6), max_batch=4, ring=2),
]
ROUNDS = [None, Round("train", 3, 0, 5, 3), Round("evaluate", 2**40, 0, 1, 4)]


def header_families() -> Families:
    return {"headers of messages": _make}


def _make(draws: random.Random, folder: Path) -> Case:
    layout, entry = draws.choice(LAYOUTS), draws.choice(ROUNDS)
    expected = layout.opening() if entry is None else layout.expected_header(entry)
    kind, changed = _changed(draws, layout, expected)
    return refused(f"{layout.edge.kind}, {kind}: {changed[:64].hex()}", lambda: layout.check(changed, entry))


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
