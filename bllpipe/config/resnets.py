"""The ResNets that a config may name (He et al. 2015, table 1)."""

DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}

LAST_STAGE = 8  # times as wide as the first: each of four stages doubles


def residual_units(name: str) -> list[tuple[int, int]]:
    """(stage, index in the stage) of every residual unit, both from 0: what a cut never divides."""
    return [(stage, index) for stage, depth in enumerate(DEPTHS[name]) for index in range(depth)]


def unit_name(stage: int, index: int) -> str:
    """What torchvision, and with it a cut, calls a residual unit."""
    return f"layer{stage + 1}.{index}"
