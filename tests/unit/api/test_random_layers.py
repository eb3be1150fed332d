"""Layers that draw random numbers in training: a warning says so, however the network comes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor, nn
from torchvision.ops import DropBlock2d, StochasticDepth

import bllpipe
from bllpipe import cli, launch
from bllpipe.models.registry import is_stochastic
from tests.support.networks.api import DATA

SMALL = {"data.batch_size": 32}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


class DropsByHand(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.dropout, self.training)


DRAW = {
    "Dropout": nn.Dropout(0.5),
    "AlphaDropout": nn.AlphaDropout(0.5),
    "Dropout2d": nn.Dropout2d(0.1),
    "StochasticDepth": StochasticDepth(0.5, "row"),
    "DropBlock2d": DropBlock2d(0.1, 3),
    "RReLU": nn.RReLU(),
    "attention": nn.MultiheadAttention(8, 2, dropout=0.1),
    "transformer": nn.TransformerEncoderLayer(8, 2, dropout=0.1),
    "LSTM": nn.LSTM(8, 8, num_layers=2, dropout=0.1),
    "FractionalMaxPool2d": nn.FractionalMaxPool2d(2, output_size=2),
    "by hand": DropsByHand(0.1),
}
DRAW_NOT = {
    "Dropout": nn.Dropout(0.0),
    "StochasticDepth": StochasticDepth(0.0, "row"),
    "RReLU": nn.RReLU(0.2, 0.2),
    "attention": nn.MultiheadAttention(8, 2),
    "LSTM": nn.LSTM(8, 8, num_layers=2),
    "by hand": DropsByHand(0.0),
    "Linear": nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", DRAW)
def test_layers_that_draw(name: str) -> None:
    assert any(map(is_stochastic, DRAW[name].modules()))


@pytest.mark.parametrize("name", DRAW_NOT)
def test_layers_that_do_not(name: str) -> None:
    assert not any(map(is_stochastic, DRAW_NOT[name].modules()))


def dropping(in_channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, 8)), nn.Dropout(0.5), nn.Linear(8, num_classes)]


@pytest.mark.parametrize("middle", [StochasticDepth(0.5, "row"), nn.RReLU(), DropsByHand(0.5)])
def test_modules_that_draw_are_warned_of_once(middle: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    bllpipe.train([nn.Linear(6, 8), middle, nn.Linear(8, 3)], DATA, blocks=[2], epochs=1, settings=SMALL)
    assert capsys.readouterr().err.count("bllpipe: 1 of the model draws random numbers in training") == 1


def test_functions_and_names_that_draw_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    warning, words = "bllpipe: 1 of the model draws random numbers in training", ["blocks=2", "steps=2"]
    bllpipe.train(lambda **sizes: dropping(**sizes), "digits", blocks=2, epochs=1, settings={"steps": 2})
    assert capsys.readouterr().err.count(warning) == 1
    words = [part for word in (f"model.name={__name__}:dropping", *words) for part in ("--set", word)]
    assert launch.main([*words, "--set", "engine=sequential"]) == 0
    assert capsys.readouterr().err.count(warning) == 1
    assert cli.main(["check", *words]) == 0
    assert capsys.readouterr().err.count(warning) == 1


class Noisy(nn.Module):
    def __init__(self, *about: object) -> None:
        super().__init__()
        self.noise = nn.Dropout(0.5)

    def forward(self, alpha: Tensor, scores: Tensor, target: bllpipe.Target, x: Tensor) -> dict[str, Tensor]:
        return {"pred": nn.functional.cross_entropy(self.noise(scores), target.label_B)}


def test_a_loss_that_draws_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    bllpipe.train([nn.Linear(6, 8), nn.Linear(8, 3)], DATA, blocks=2, epochs=1, objective=Noisy, settings=SMALL)
    assert capsys.readouterr().err.count("bllpipe: terms of the objective draws random numbers in training") == 1
