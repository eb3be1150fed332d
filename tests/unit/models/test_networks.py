"""ResNets against torchvision's, cuts, and networks of one's own."""

import pytest
import torch
import torchvision
from torch import nn

from bllpipe.config.networks import DEPTHS
from bllpipe.config.schema import ModelConfig
from bllpipe.errors import ConfigError
from bllpipe.models.partition import cut
from bllpipe.models.registry import network_units
from bllpipe.models.resnet import resnet_units
from bllpipe.models.units import Segment


@pytest.mark.parametrize("name", sorted(DEPTHS))
def test_names_and_shapes_are_those_of_torchvision(name: str) -> None:
    theirs = getattr(torchvision.models, name)(num_classes=7)
    with torch.device("meta"):
        ours = Segment(resnet_units(name, 64, "imagenet", 3, 7), seed=0)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_same_weights_give_the_same_scores_as_torchvision(name: str) -> None:
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    ours = Segment(resnet_units(name, 64, "imagenet", 3, 7), seed=0).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


def test_initialisation_is_that_of_torchvision() -> None:
    ours = Segment(resnet_units("resnet18", 64, "imagenet", 3, 10), seed=0).state_dict()
    theirs = torchvision.models.resnet18(num_classes=10).state_dict()
    for key in ("conv1.weight", "layer3.0.conv1.weight", "layer4.1.conv2.weight"):
        assert ours[key].std().item() == pytest.approx(theirs[key].std().item(), rel=0.1)


def test_weights_do_not_depend_on_the_cut() -> None:
    units = resnet_units("resnet18", 8, "cifar", 1, 10)
    whole = Segment(units, seed=3).state_dict()
    for blocks in (2, 4, [3, 5]):
        parts = [Segment(part, seed=3).state_dict() for part in cut(units, blocks)]
        merged = {key: value for part in parts for key, value in part.items()}
        assert merged.keys() == whole.keys()
        assert all(torch.equal(merged[key], whole[key]) for key in whole)
    other = Segment(units, seed=4).state_dict()
    assert not torch.equal(other["conv1.weight"], whole["conv1.weight"])


def test_blocks_in_a_row_compute_what_the_whole_computes() -> None:
    units = resnet_units("resnet18", 8, "cifar", 1, 10)
    images = torch.randn(3, 1, 8, 8)
    x = images
    for part in cut(units, 4):
        x = Segment(part, seed=0)(x)
    assert torch.equal(x, Segment(units, seed=0)(images))


@pytest.mark.parametrize(
    ("name", "blocks", "sizes"),
    [
        ("resnet50", 4, [4, 4, 4, 4]),
        ("resnet18", 3, [3, 3, 2]),
        ("resnet18", 1, [8]),
        ("resnet50", [3, 7, 13], [3, 4, 6, 3]),
        ("resnet50", ["layer1.2", "layer2.3"], [3, 4, 9]),
    ],
)
def test_cuts(name: str, blocks: int | list[int | str], sizes: list[int]) -> None:
    assert [len(part) for part in cut(resnet_units(name, 8, "cifar", 3, 10), blocks)] == sizes


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (9, "blocks=9, but the network has only 8 units.*--set blocks=8"),
        ([8], "cannot cut after 8; expected a number from 1 to 7"),
        (["layer9.0"], "cannot cut after 'layer9.0'.*layer1.0, layer1.1"),
        (["layer2.0", "layer1.0"], "expected cuts in order"),
    ],
)
def test_impossible_cuts(blocks: int | list[int | str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cut(resnet_units("resnet18", 8, "cifar", 3, 10), blocks)


def three_layers(in_channels: int, num_classes: int, hidden: int = 8) -> list[nn.Module]:
    return [nn.Flatten(), nn.Sequential(nn.Linear(16, hidden), nn.ReLU()), nn.Linear(hidden, num_classes)]


def no_modules(in_channels: int, num_classes: int) -> list[object]:
    return [3]


def test_a_network_of_ones_own_has_the_names_of_a_sequential() -> None:
    model = ModelConfig(name=f"{__name__}:three_layers", args={"hidden": 5})
    segment = Segment(network_units(model, (1, 8, 8), 10, seed=0), seed=0)
    assert segment(torch.zeros(2, 1, 4, 4)).shape == (2, 10)
    assert "1.0.weight" in segment.state_dict() and segment.state_dict()["2.weight"].shape == (10, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package:f", "cannot be imported.*package.module:function"),
        (f"{__name__}:nothing_here", "cannot be imported"),
        (f"{__name__}:__doc__", "is a str; expected a function"),
        (f"{__name__}:no_modules", "returned int; expected a list of torch.nn.Module"),
    ],
)
def test_wrong_network_functions(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network_units(ModelConfig(name=name), (1, 8, 8), 10, seed=0)
