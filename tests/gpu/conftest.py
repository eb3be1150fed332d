"""What a process chooses for its GPU: taken back after every test that chooses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bllpipe.distributed.torchrun import allow_deterministic_products

allow_deterministic_products()  # before the first product of this process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A kernel that hangs hangs for ever, on a machine that costs money: every test here says how long it may take.
    Those that compute in this process end it (method="thread"): a wait for a GPU hears no signal."""
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    if without := sorted({item.nodeid for item in here if item.get_closest_marker("timeout") is None}):
        raise pytest.UsageError(f"expected @pytest.mark.timeout(SECONDS) on every test for GPUs, not on {without}")


@pytest.fixture
def own_choices() -> Iterator[None]:
    """Determinism for one test alone."""
    cudnn, chosen = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    before = cudnn.deterministic, cudnn.benchmark
    yield
    cudnn.deterministic, cudnn.benchmark = before
    torch.use_deterministic_algorithms(chosen)
