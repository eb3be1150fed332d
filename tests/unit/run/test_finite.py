"""NaN and Inf are found before the update of the step in which they reach a loss, and called by name."""

from __future__ import annotations

import re

import pytest
import torch

from bllpipe.errors import NonFiniteError
from bllpipe.run.finite import describe, is_finite, require_finite


def test_what_is_finite() -> None:
    assert is_finite(torch.ones(3)) and is_finite(torch.tensor([2**62]))
    assert not is_finite(torch.tensor([1.0, float("nan")])) and not is_finite(torch.tensor(float("-inf")))


def test_a_description_counts() -> None:
    values = torch.zeros(2, 600)
    values[0, :3], values[1, 5] = float("nan"), float("inf")
    assert describe("alpha", values) == "alpha has 3 NaN and 1 Inf among its 1,200 values"
    assert describe("the loss", torch.tensor(float("inf"))) == "the loss is inf"


def test_the_first_of_many_is_named() -> None:
    tensors = {"a": torch.ones(1), "n": torch.ones(2, dtype=torch.int64), "b": torch.tensor([0.0, float("nan")])}
    with pytest.raises(NonFiniteError, match=re.escape("rank 1 (block 1), step 6: b has 1 NaN and 0 Inf among its 2")):
        require_finite(tensors, 1, "block 1", "step 6", received=[])
    require_finite({"a": tensors["a"]}, 0, "block 0", "step 0", received=[])
