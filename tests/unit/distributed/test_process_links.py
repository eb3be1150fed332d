"""Both ends of an edge find out over the store whether they mean the same, before anything travels."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bllpipe.distributed.message_format import MAGIC, VERSION, Layout, alpha_fields
from bllpipe.distributed.process_links import EdgeHandshake
from bllpipe.errors import WireError
from bllpipe.topology import Edge

LAYOUT = Layout(Edge("alpha", 0, 1), ("block 0", "block 1"), alpha_fields((2, 3), torch.float32), max_batch=4, ring=2)
OTHERS = {
    "shape": (replace(LAYOUT, fields=alpha_fields((2, 2), torch.float32)), "float32[4, 2, 2]"),
    "longer": (replace(LAYOUT, fields=alpha_fields((200, 300), torch.float32)), "float32[4, 200, 300]"),
    "dtype": (replace(LAYOUT, fields=alpha_fields((2, 3), torch.bfloat16)), "bfloat16[4, 2, 3]"),
    "batch": (replace(LAYOUT, max_batch=3), "at most 3 images"),
}


def shake(sender: Layout, receiver: Layout) -> list[str]:
    """What either end says of the other: nothing if they mean the same."""
    store: Any = dist.HashStore()
    ends = EdgeHandshake(store), EdgeHandshake(store)
    ends[0].publish(sender, "src")
    ends[1].publish(receiver, "dst")
    return [compared(end) for end in ends]


def compared(end: EdgeHandshake) -> str:
    try:
        end.compare()
    except WireError as error:
        return str(error)
    return ""


def test_ends_that_mean_the_same_agree() -> None:
    assert shake(LAYOUT, LAYOUT) == ["", ""]


@pytest.mark.parametrize(("other", "words"), OTHERS.values(), ids=OTHERS)
def test_both_ends_say_the_same_about_what_differs(other: Layout, words: str) -> None:
    first, second = shake(other, LAYOUT)
    assert first == second
    pattern = (
        r"edge alpha 0->1 \(block 0 to block 1\): block 1 expected alpha 0->1, at most 4 images, float32\[4, 2, 3\]"
    )
    assert re.match(pattern, first) and words in first.split("but block 0 sends")[1]


@pytest.mark.parametrize(
    ("published", "words"),
    [
        (b"\x01" * 256, "bytes that are no bllpipe header"),
        (MAGIC[:-1] + bytes([VERSION - 1]) + bytes(248), f"a header of version {VERSION - 1}, not {VERSION}"),
        (MAGIC, "train step 0 batch 0 of 0 images"),
        (b"", "bytes that are no bllpipe header"),
    ],
    ids=["foreign", "version", "short", "empty"],
)
def test_what_is_not_ours_is_described(published: bytes, words: str) -> None:
    store: Any = dist.HashStore()
    end = EdgeHandshake(store)
    end.publish(LAYOUT, "dst")
    store.set("layout/alpha 0->1/src", published.hex())
    with pytest.raises(WireError, match=f"block 1 expected .*, but block 0 sends .*{words}"):
        end.compare()


def test_words_that_are_no_header_at_all() -> None:
    store: Any = dist.HashStore()
    end = EdgeHandshake(store)
    end.publish(LAYOUT, "dst")
    store.set("layout/alpha 0->1/src", "GET / HTTP/1.1")
    with pytest.raises(WireError, match="block 0 sends bytes that are no bllpipe header"):
        end.compare()


def test_an_end_that_says_nothing_is_named() -> None:
    store: Any = dist.HashStore()
    store.set_timeout(timedelta(milliseconds=50))
    end = EdgeHandshake(store)
    end.publish(LAYOUT, "src")
    with pytest.raises(
        WireError,
        match=r"^edge alpha 0->1 \(block 0 to block 1\): block 1 has not published the layout",
    ):
        end.compare()
