"""What a process chooses for its GPU: taken back after every test that chooses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bllpipe.wire.environment import allow_deterministic_products

allow_deterministic_products()  # before the first product of this process


@pytest.fixture
def own_choices() -> Iterator[None]:
    """Determinism for one test alone."""
    cudnn, chosen = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    before = cudnn.deterministic, cudnn.benchmark
    yield
    cudnn.deterministic, cudnn.benchmark = before
    torch.use_deterministic_algorithms(chosen)
