"""A pool by products is the adaptive pool that it takes the place of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bllpipe.config import load_config
from bllpipe.learn.heads import make_head
from bllpipe.learn.memory_format import DeterministicAvgPool, make_pools_deterministic
from bllpipe.models.units import Segment, units_from_modules


def forward_backward(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the pool gives, and the gradient that it passes on."""
    leaf = x.clone().requires_grad_()
    pooled: Tensor = pool(leaf)
    pooled.backward(torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(pooled.dtype))
    assert leaf.grad is not None
    return pooled.detach(), leaf.grad


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (5, 5), (3, 16), (1, 7), (16, 16)])
def test_it_gives_the_same_means_and_gradients(size: tuple[int, int], channels_last: bool) -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    expected, found = forward_backward(nn.AdaptiveAvgPool2d(size), x), forward_backward(DeterministicAvgPool(size), x)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_half_precision_is_added_up_in_fp32() -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = DeterministicAvgPool((5, 5))(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, nn.AdaptiveAvgPool2d((5, 5))(x.float()).bfloat16())


@pytest.mark.parametrize("head", ["linear", "mlp", "conv", "narrow", "gap"])
def test_heads_keep_their_names_and_what_they_give(head: str) -> None:
    config = load_config(None, [f"objective.head={head}", "objective.head_features=50"]).objective
    own = make_head((8, 8, 8), 10, config).eval()
    x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, names = own(x), list(own.state_dict())
    make_pools_deterministic(own)
    assert list(own.state_dict()) == names
    torch.testing.assert_close(own(x), expected, rtol=1e-4, atol=1e-5)
    assert any(isinstance(each, DeterministicAvgPool) for each in own.modules()) == (head != "gap")


def test_a_pool_that_keeps_a_side_stays() -> None:
    own = nn.Sequential(nn.AdaptiveAvgPool2d((None, 2)), nn.AdaptiveAvgPool2d(1))
    make_pools_deterministic(own)
    assert all(isinstance(each, nn.AdaptiveAvgPool2d) for each in own)


def test_the_modules_of_a_script_keep_their_pools() -> None:
    user = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(2)), nn.BatchNorm2d(3))
    for _ in range(2):
        segment = Segment(units_from_modules({"0": user}), seed=0)
        make_pools_deterministic(segment)
        assert isinstance(segment.get_submodule("0.0.0"), DeterministicAvgPool)
        assert segment.get_parameter("0.1.weight") is user.get_parameter("1.weight")
    assert isinstance(user.get_submodule("0.0"), nn.AdaptiveAvgPool2d)
