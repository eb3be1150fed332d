"""The networks that come with bllpipe: how many residual units each stage has, and their names."""

from __future__ import annotations

DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
LAST_STAGE = 8  # its width divided by that of the first: each of four stages doubles it


def residual_units(name: str) -> list[tuple[int, int]]:
    """(stage, index in the stage) of every residual unit, both from 0; a cut never divides a unit."""
    return [(stage, index) for stage, depth in enumerate(DEPTHS[name]) for index in range(depth)]


def unit_name(stage: int, index: int) -> str:
    """The name of a residual unit in torchvision, and in cuts."""
    return f"layer{stage + 1}.{index}"
