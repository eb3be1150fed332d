"""BatchNorm in a process that uses NCCL: not by cuDNN, with the same names, and nothing else is changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bllpipe.learn.memory_format import without_cudnn
from bllpipe.models.partition import cut
from bllpipe.models.resnet import resnet_units
from bllpipe.models.units import Segment, units_from_modules

Seen = list[tuple[str, bool]]


class Noting(nn.BatchNorm2d):
    """Notes whether cuDNN may be used while it computes."""

    def __init__(self, channels: int, seen: Seen) -> None:
        super().__init__(channels)
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(("norm", torch.backends.cudnn.enabled))
        return super().forward(x)


class Convolution(nn.Conv2d):
    """Notes it too."""

    def __init__(self, channels: int, seen: Seen) -> None:
        super().__init__(channels, channels, 1)
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(("convolution", torch.backends.cudnn.enabled))
        return super().forward(x)


def test_cudnn_is_off_for_normalisation_alone() -> None:
    seen: Seen = []
    network = nn.Sequential(Convolution(2, seen), nn.Sequential(Noting(2, seen)), Convolution(2, seen))
    without_cudnn(network)
    network(torch.randn(3, 2, 4, 4))
    assert seen == [("convolution", True), ("norm", False), ("convolution", True)]


def test_an_error_leaves_it_on() -> None:
    network = nn.BatchNorm2d(2)
    without_cudnn(network)
    with pytest.raises(ValueError, match="expected 4D input"):
        network(torch.randn(2))
    assert torch.backends.cudnn.enabled


def test_names_and_bits_stay() -> None:
    plain, native = (Segment(cut(resnet_units("resnet18", 4, "cifar", 1, 10), 4)[0], seed=0) for _ in range(2))
    without_cudnn(native)
    x = torch.randn(6, 1, 8, 8)
    for segment in (plain, native):
        segment(x).square().mean().backward()
    assert list(native.state_dict()) == list(plain.state_dict())
    for one, other in zip(plain.parameters(), native.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


def test_the_modules_of_a_script_stay_as_they_are() -> None:
    user = nn.Sequential(nn.BatchNorm2d(2))
    segment = Segment(units_from_modules({"0": user}), seed=0)
    without_cudnn(segment)
    assert "forward" in vars(segment.get_submodule("0.0"))
    assert "forward" not in vars(user[0])
    segment(torch.randn(3, 2, 4, 4))
    norm = user[0]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_mean.any()
