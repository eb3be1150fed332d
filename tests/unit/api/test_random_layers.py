"""Layers that draw random numbers in training: where they are not seeded, a warning says so, however the network comes;
data that draw keep their numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.ops import DropBlock2d, StochasticDepth

import bllpipe
from bllpipe import cli, launch
from bllpipe.api.datasets import ItemData
from bllpipe.config import load_config
from bllpipe.engines import build
from bllpipe.engines.draws import make_draws, why_not_seeded
from bllpipe.learn.block import make_block
from bllpipe.learn.draws import NOT_SEEDED
from bllpipe.models.registry import is_stochastic, network_units
from bllpipe.models.units import Segment
from tests.support.networks.api import DATA

SMALL: dict[str, object] = {"data.batch_size": 32}
THREADS = {**SMALL, "engine": "threads"}  # whose draws are not seeded


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
    bllpipe.train([nn.Linear(6, 8), middle, nn.Linear(8, 3)], DATA, blocks=[2], epochs=1, settings=THREADS)
    assert capsys.readouterr().err.count("bllpipe: 1 of the model draws random numbers in training") == 1


def test_functions_and_names_that_draw_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    warning = "bllpipe: 1 of the model draws random numbers in training"
    bllpipe.train(lambda **sizes: dropping(**sizes), "digits", blocks=2, epochs=1, settings={**THREADS, "steps": 2})
    assert capsys.readouterr().err.count(warning) == 1
    settings = (f"model.name={__name__}:dropping", "blocks=2", "steps=2", "engine=threads")
    words = [part for word in settings for part in ("--set", word)]
    assert launch.main(words) == 0
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
    bllpipe.train([nn.Linear(6, 8), nn.Linear(8, 3)], DATA, blocks=2, epochs=1, objective=Noisy, settings=THREADS)
    assert capsys.readouterr().err.count("bllpipe: terms of the objective draws random numbers in training") == 1


def test_a_network_that_is_seeded_is_not_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    modules = [nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)]
    bllpipe.train(modules, DATA, blocks=[2], epochs=1, objective=Noisy, settings=SMALL)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "device", "words"),
    [
        (["engine=sequential"], "cpu", ""),
        (["engine=ranks"], "cuda", ""),
        (["engine=threads"], "cpu", "all threads of a process draw from one generator"),
        (["engine=gpipe", "method=bp"], "cpu", "in the order in which engine gpipe computes"),
        (["engine=ddp", "method=bp"], "cpu", "in the order in which engine ddp computes"),
        (["engine=streams", "gpu.capture=blocks"], "cuda", "captured and compiled steps"),
        (["engine=ranks", "gpu.compile=true"], "cuda", "captured and compiled steps"),
    ],
)
def test_where_draws_are_not_seeded_words_say_why(settings: list[str], device: str, words: str) -> None:
    why = why_not_seeded(load_config(None, settings), torch.device(device))
    assert words in why and bool(words) == bool(why)


class Items(Dataset[tuple[Tensor, int]]):
    """A data set whose items draw from torch's global random numbers."""

    def __init__(self, split: tuple[Tensor, Tensor]) -> None:
        self.images, self.targets = split

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image = self.images[number]
        return image + 0.1 * torch.randn_like(image), int(self.targets[number])


def test_data_that_draw_keep_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the network draws none, nothing is seeded."""

    def digest() -> str:
        torch.manual_seed(0)
        modules, data = [nn.Linear(6, 8), nn.Linear(8, 3)], (Items(DATA[0]), Items(DATA[1]))
        return str(bllpipe.train(modules, data, blocks=2, epochs=1, settings=SMALL).summary["state_sha256"])

    found = digest()
    monkeypatch.setattr(build, "make_draws", lambda *about: NOT_SEEDED)
    assert digest() == found


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_items_that_a_thread_reads_show_nothing_about_the_network(rate: float) -> None:
    """The thread may draw during the first step; then the layers alone decide."""
    data = ItemData(Items(DATA[0]), Items(DATA[1]))
    config = load_config(None, [f"model.name={__name__}:one_drop", f"model.args.rate={rate}"])
    config = replace(config, data=replace(config.data, user_data=data))
    segment = Segment(network_units(config.model, (6,), 3, seed=0)[:1], seed=0)
    block, images = make_block(segment, (6,), (8,), config, 3, total_steps=1, is_last=False), data.images(config.data)
    assert make_draws(block, config, images, ahead=True).found is (rate > 0)
    shown_by_the_first_step = None if rate == 0 else True
    assert make_draws(block, config, images, ahead=False).found is shown_by_the_first_step
    assert make_draws(block, config, None, ahead=True).found is shown_by_the_first_step


def one_drop(in_channels: int, num_classes: int, rate: float) -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(in_channels, 8), nn.Dropout(rate)), nn.Linear(8, num_classes)]
