"""Networks that scripts and functions bring along: what is trained, what is warned of, and what is refused, in the same
words by ``bllpipe check`` and by the run."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bllpipe
from bllpipe import cli
from tests.support.networks.api import DATA

SMALL = {"data.batch_size": 32}
Network = Callable[[int, int], list[nn.Module]]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


def flat(in_channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(in_channels * 64, 8), nn.ReLU(), nn.Linear(8, num_classes)]


def alone(in_channels: int, num_classes: int) -> list[nn.Module]:
    return [
        nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, 8)),
        nn.ReLU(),
        nn.Linear(8, num_classes),
    ]


def sharing(in_channels: int, num_classes: int) -> list[nn.Module]:
    norm = nn.BatchNorm1d(8, affine=False)
    return [nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, 8), norm), nn.Sequential(norm, nn.Linear(8, 10))]


class Counted(nn.Linear):
    calls = 0

    def get_extra_state(self) -> Any:
        return {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]


class CountedInATensor(Counted):
    def get_extra_state(self) -> Any:
        return torch.tensor(self.calls)


def counted(in_channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.Sequential(nn.Flatten(), Counted(in_channels * 64, 8)), nn.Linear(8, num_classes)]


class Complex(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.ones(features // 2 + 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = torch.fft.irfft(torch.fft.rfft(x.flatten(1)) * self.filter, n=2 * len(self.filter) - 2)
        return made


def complex_numbers(in_channels: int, num_classes: int) -> list[nn.Module]:
    return [Complex(in_channels * 64), nn.Linear(in_channels * 64, num_classes)]


def frozen_last(in_channels: int, num_classes: int) -> list[nn.Module]:
    last = nn.Linear(8, num_classes).requires_grad_(False)
    return [nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, 8)), last]


def maps(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Maps of 4x4 positions, which three halvings in a head make one."""
    first = nn.Conv2d(in_channels, 8, 3, stride=2, padding=1)
    return [first, nn.Conv2d(8, 8, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))]


def normed(in_channels: int, num_classes: int) -> list[nn.Module]:
    norm = nn.BatchNorm1d(8)
    return [nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, 8), norm), nn.Linear(8, num_classes)]


def without_statistics(in_channels: int, num_classes: int) -> list[nn.Module]:
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return [nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, 8), norm), nn.Linear(8, num_classes)]


def lazy(in_channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.LazyLinear(8), nn.Linear(8, num_classes)]


def sparse(in_channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.Sequential(nn.Flatten(), nn.EmbeddingBag(9, 8, sparse=True)), nn.Linear(8, num_classes)]


def expanded(in_channels: int, num_classes: int) -> list[nn.Module]:
    first = nn.Linear(in_channels * 64, 8)
    first.bias = nn.Parameter(torch.zeros(1).expand(8))
    return [nn.Sequential(nn.Flatten(), first), nn.Linear(8, num_classes)]


REFUSED: dict[str, tuple[Network, list[str], str]] = {
    "no parameters": (alone, ["blocks=3"], "the block that ends with 1 has no parameters; cut somewhere else"),
    "no parameters, dgl": (alone, ["blocks=3", "method=dgl"], "the block that ends with 1 has no parameters; cut"),
    "no parameters, predsim": (alone, ["blocks=3", "method=predsim"], "the block that ends with 1 has no parameters"),
    "nothing in front": (flat, ["blocks=[1]"], "the block that ends with 0 has no parameters; cut somewhere else"),
    "shared buffers": (
        sharing,
        ["blocks=2"],
        "the model: .* got modules 0 and 1 with the same buffer .*running_mean; use",
    ),
    "extra state": (counted, ["blocks=2"], "module 0 of the model: .* got 1._extra_state, a dict .*register_buffer"),
    "complex": (complex_numbers, ["blocks=2"], "module 0 of the model: expected real parameters, got filter of compl"),
    "frozen last": (frozen_last, ["blocks=2"], "the block that ends with 1 has nothing to train: all of its param"),
    "lazy": (lazy, ["blocks=2"], "module 1 of the model: expected parameters with a shape, got a lazy layer"),
    "sparse": (
        sparse,
        ["blocks=2"],
        "module 0 of the model: expected dense gradients, got sparse ones of 1; use sparse",
    ),
    "expanded": (
        expanded,
        ["blocks=2"],
        "module 0 of the model: expected parameters with memory for each value, got 1.bias, a tensor that was expanded",
    ),
    "one image": (normed, ["blocks=2", "data.batch_size=1"], "block 0: the batch norm 0.2 sees one value a channel"),
    "one image in a head": (  # which ended in torch's own error, "a fault in bllpipe"
        maps,
        ["blocks=2", "data.batch_size=1", "objective.head=strided", "objective.head_width=64"],
        "the head of 1: the batch norm [0-9]+ sees one value a channel of an image, and training batches have 1 image",
    ),
    "a KL without end": (  # OverflowError
        maps,
        ["blocks=3", "objective.kl_block_factor=1e200", "objective.kl_weight=1e200"],
        r"objective.kl_block_factor is 1e\+200, whose power in block 1 times .* is no finite number; use smaller ones",
    ),
    "one image in the test": (
        without_statistics,
        ["blocks=2", "data.batch_size=177"],  # of 355 test images one is left over
        "block 0: the batch norm 0.2 keeps no running statistics, and the last test batch has 1 image",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_check_and_the_run_refuse_in_the_same_words(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    network, settings, message = REFUSED[name]
    words = [f"model.name={__name__}:{network.__name__}", "engine=sequential", "steps=2", *settings]
    words = [part for word in words for part in ("--set", word)]
    said = []
    for arguments in (["train", *words], ["check", *words]):
        assert cli.main(arguments) == 2
        said.append(capsys.readouterr().err.strip().splitlines()[-1])
    assert said[0].partition("(the only process): ")[2] == said[1].removeprefix("bllpipe: ")
    assert re.search(message, said[1])


def points(frozen: str, **settings: Any) -> tuple[nn.Sequential, bllpipe.Run]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model.get_submodule(frozen).requires_grad_(False)
    return model, bllpipe.train(model, DATA, blocks=[2, 4], epochs=25, settings=SMALL, **settings)


def distant(alpha: Tensor, scores: Tensor, target: bllpipe.Target, x: Tensor) -> dict[str, Tensor]:
    return {"far": alpha.square().mean(), "pred": nn.functional.cross_entropy(scores, target.label_B)}


@pytest.mark.parametrize("frozen", ["0", "2"])
@pytest.mark.parametrize("settings", [{}, {"objective": "dgl"}, {"objective": distant}, {"engine": "threads"}])
def test_a_frozen_block_keeps_its_weights_and_its_head_learns(frozen: str, settings: Any) -> None:
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model, run = points(frozen, **settings)
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]) == name.startswith(frozen), name
    assert run.block_accuracy[int(frozen) // 2] > 0.6, "its own head"


class WithoutGraph(nn.Module):
    def __init__(self, features: int, out: int, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(features, out), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.linear(x))


@pytest.mark.parametrize(
    "how",
    [
        Tensor.detach,
        lambda x: x.data,
        torch.no_grad()(Tensor.clone),
        torch.inference_mode()(Tensor.clone),
        lambda x: nn.functional.one_hot(x.argmax(dim=1), x.shape[1]).float(),
    ],
    ids=["detach", "data", "no_grad", "inference_mode", "argmax"],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_block_whose_weights_would_never_change_is_refused(how: Any, place: int) -> None:
    """Its head alone was trained, and of the last block nothing, without a word."""
    modules = [nn.Linear(6, 8), nn.Linear(8, 3)]
    modules[place] = WithoutGraph(*((6, 8), (8, 3))[place], how)  # type: ignore[call-overload]  # one of two
    message = f"the block that ends with {place}: expected an output that depends on its trainable parameters"
    with pytest.raises(bllpipe.ConfigError, match=message):
        bllpipe.train(modules, DATA, blocks=2, settings=SMALL)
    if place == 0:
        modules[0].requires_grad_(False)
        assert bllpipe.train(modules, DATA, blocks=2, epochs=1, settings=SMALL).accuracy > 0


def test_a_frozen_stage_of_a_pipeline_is_refused() -> None:
    from bllpipe.config import load_config
    from bllpipe.engines.synchronous import StageTrainer
    from bllpipe.models.units import Segment, units_from_modules

    segment = Segment(units_from_modules({"0": nn.Linear(2, 2).requires_grad_(False)}), seed=0)
    with pytest.raises(bllpipe.ConfigError, match="the stage that ends with 0 has nothing to train: all of its"):
        StageTrainer([segment], load_config(None), 1, add_up=lambda square: square)


def tied(kind: str) -> list[nn.Module]:
    one, other, norm, drop = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
    if kind == "weight":
        other.weight = one.weight
    if kind == "memory":
        other.weight = nn.Parameter(one.weight.detach())
    if kind == "buffer":
        table = torch.ones(3)
        one.register_buffer("table", table)
        other.register_buffer("table", table)
    if kind == "norm":
        return [nn.Sequential(one, norm), nn.Sequential(norm, other)]
    if kind == "dropout":
        return [nn.Sequential(one, drop), nn.Sequential(drop, other)]
    return [one, other]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("weight", "modules 0 and 1 with the same parameter weight"),
        ("memory", "modules 0 and 1 with the same parameter weight"),
        ("buffer", "modules 0 and 1 with the same buffer table; use .* a copy.deepcopy"),
        ("norm", "modules 0 and 1 with the same parameter 0.weight"),
        ("dropout", "modules 0 and 1 with the same layer Dropout 0"),
    ],
)
def test_what_two_blocks_share(kind: str, message: str) -> None:
    with pytest.raises(bllpipe.ConfigError, match=message):
        bllpipe.cut(tied(kind), 2)
    assert len(bllpipe.cut(copy.deepcopy([nn.Sequential(*tied(kind)), nn.Linear(6, 3)]), 2)) == 2


def test_what_lies_side_by_side_in_one_memory_is_not_shared() -> None:
    memory = torch.zeros(2, 3, 3)
    one, other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    one.weight, other.weight = nn.Parameter(memory[0]), nn.Parameter(memory[1])
    relu = nn.ReLU()
    assert len(bllpipe.cut([one, relu, other, relu], 2)) == 2


@pytest.mark.parametrize("state", [Counted, CountedInATensor])
def test_extra_state_of_a_script(state: type[Counted]) -> None:
    with pytest.raises(bllpipe.ConfigError, match=r"module 0 of the model: .* got _extra_state, a (dict|Tensor)"):
        bllpipe.train([state(6, 8), nn.Linear(8, 3)], DATA, blocks=2, settings=SMALL)


def test_a_hook_that_adds_to_the_state() -> None:
    first = nn.Linear(6, 8)
    first.register_state_dict_post_hook(lambda module, state, prefix, metadata: state.update({f"{prefix}note": "x"}))
    with pytest.raises(bllpipe.ConfigError, match="got note, a str"):
        bllpipe.train([first, nn.Linear(8, 3)], DATA, blocks=2, settings=SMALL)


def test_what_was_made_in_inference_mode_or_without_values() -> None:
    with torch.inference_mode():
        made = nn.Linear(6, 8)
    with pytest.raises(bllpipe.ConfigError, match="weight was made inside torch.inference_mode"):
        bllpipe.train([made, nn.Linear(8, 3)], DATA, blocks=2, settings=SMALL)
    with pytest.raises(bllpipe.ConfigError, match=r"module 0: weight of the model has no values \(device meta\)"):
        bllpipe.train([nn.Linear(6, 8, device="meta"), nn.Linear(8, 3)], DATA, blocks=2, settings=SMALL)


def test_batch_norms_that_have_values_enough() -> None:
    """Maps of several positions, and batches of one image; no statistics, and batches of several images."""
    images = torch.randn(12, 2, 4, 4)
    data = ((images, torch.arange(12) % 3), (images, torch.arange(12) % 3))
    maps = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    last = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert bllpipe.train([maps, last], data, blocks=2, epochs=1, settings={"data.batch_size": 1}).accuracy >= 0
    first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False))
    assert bllpipe.train([first, nn.Linear(8, 3)], DATA, blocks=2, epochs=1, settings=SMALL).accuracy >= 0


def test_a_plan_has_no_block_without_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = bllpipe.make_plan(model, DATA, 3, settings=SMALL, repetitions=2)
    assert all(list(block.parameters()) for block in bllpipe.cut(model, plan.cut))
    run = bllpipe.train(model, DATA, blocks="balanced 3", epochs=1, settings=SMALL)
    assert len(run.block_accuracy) == 3
    assert np.isfinite(plan.best.images_per_second)


class Counting(nn.Linear):
    """Counts its batches in a buffer; another buffer never changes."""

    batches: Tensor
    constant: Tensor

    def __init__(self, features: int, out: int, is_saved: bool) -> None:
        super().__init__(features, out)
        self.register_buffer("batches", torch.zeros(()), persistent=is_saved)
        self.register_buffer("constant", torch.ones(()), persistent=False)
        self.register_buffer("nothing", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.batches += 1
        return super().forward(x) * self.constant


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("is_saved", [False, True])
def test_a_buffer_that_no_checkpoint_holds(is_saved: bool, shards: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A resumed run ended in other bits without a word."""
    settings = {**SMALL, "shards": shards, "checkpoint.every_steps": 2}
    bllpipe.train([Counting(6, 8, is_saved), nn.Linear(8, 3)], DATA, blocks=2, epochs=2, settings=settings)
    said = capsys.readouterr().err
    warning = "model.0.batches changes in training, but no checkpoint holds it: a resumed run ends in other bits; use"
    assert said.count(warning) == (0 if is_saved else 1) and "constant" not in said
