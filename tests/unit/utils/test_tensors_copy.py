"""What is taken out of a checkpoint has exactly the shape and the dtype that is needed, or nothing is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bllpipe.errors import CheckpointError
from bllpipe.utils.tensors import restore


def own() -> dict[str, Tensor]:
    return {"weight": nn.Parameter(torch.zeros(2, 3)), "steps": torch.tensor(0), "mine": torch.ones(1)}


def test_what_both_have_is_copied() -> None:
    live, weight = own(), torch.arange(6.0).reshape(2, 3)
    restore(live, {"weight": weight, "steps": torch.tensor(7), "theirs": torch.ones(9)})
    assert torch.equal(live["weight"], weight) and live["steps"] == 7 and live["mine"] == 1
    assert live["weight"].requires_grad and live["weight"].data_ptr() != weight.data_ptr()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("weight", torch.tensor(5.0), r"weight as float32\[\], but this run needs float32\[2, 3\]"),
        ("weight", torch.ones(1, 3), r"weight as float32\[1, 3\], but this run needs float32\[2, 3\]"),
        ("weight", torch.ones(3, 2), r"weight as float32\[3, 2\], but this run needs float32\[2, 3\]"),
        ("weight", torch.ones(2, 3, dtype=torch.float64), r"weight as float64\[2, 3\], but .* float32\[2, 3\]"),
        ("weight", torch.ones(2, 3, dtype=torch.int64), r"weight as int64\[2, 3\], but this run needs float32\[2, 3\]"),
        ("steps", torch.tensor(7.5), r"steps as float32\[\], but this run needs int64\[\]; use the config"),
        ("steps", torch.ones(1, dtype=torch.int64), r"steps as int64\[1\], but this run needs int64\[\]"),
    ],
)
def test_nothing_is_stretched_or_converted(name: str, value: Tensor, words: str) -> None:
    """Each of these went through ``copy_`` without a word."""
    live = own()
    rest = {"weight": torch.ones(2, 3), "steps": torch.tensor(7), "mine": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=f"^the checkpoint holds {words}"):
        restore(live, {**rest, name: value})
    assert all(torch.equal(live[key], value) for key, value in own().items()), "all or nothing"
