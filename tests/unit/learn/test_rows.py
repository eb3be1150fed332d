"""A forward must keep the rows of a batch, also where one image in evaluation mode did not show that it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bllpipe
from bllpipe.errors import ConfigError

DATA = torch.randn(32, 1, 4, 4), torch.arange(32) % 4


class Rows(nn.Module):
    """A forward that loses rows, or returns more than a tensor, while it trains."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        if self.how == "mean":  # of one image it is the image
            return x.mean(dim=0, keepdim=True)
        if not self.training:
            return x
        ways: dict[str, Any] = {
            "fewer": x[:-1],
            "more": x.repeat(2, 1),
            "none": x[:0],
            "two": (x, x),
            "scalar": x.mean(),
        }
        return ways[self.how]


def network(how: str, place: int) -> list[nn.Module]:
    parts = [nn.Sequential(nn.Flatten(), nn.Linear(16, 16)), nn.Linear(16, 16), nn.Linear(16, 4)]
    parts[place] = nn.Sequential(parts[place], Rows(how))
    return parts


@pytest.mark.parametrize(("method", "place"), [("bll", 0), ("bll", 1), ("bll", 2), ("bp", 2)])
@pytest.mark.parametrize(
    ("how", "got"),
    [
        ("mean", r"the shape \[1, \d+\] for 16 images"),
        ("fewer", r"the shape \[15, \d+\] for 16 images"),
        ("more", r"the shape \[32, \d+\] for 16 images"),
        ("none", r"the shape \[0, \d+\] for 16 images"),
        ("scalar", r"the shape \[\] for 16 images"),
        ("two", "a tuple for 16 images"),
    ],
)
def test_other_rows_are_named(method: str, place: int, how: str, got: str, tmp_path: Path) -> None:
    blocks: list[int | str] | None = None if method == "bp" else [1, 2]
    settings = {"data.batch_size": 16, "method": method}
    units = "units up to 2" if method == "bp" else f"unit {place}"  # of a block of several it may be any
    with pytest.raises(ConfigError, match=f"{units}: expected .* got {got} in training mode; use a forward that"):
        bllpipe.train(network(how, place), (DATA, DATA), blocks=blocks, epochs=1, settings=settings, run_dir=tmp_path)
