"""Networks with a ``forward`` of their own in ``bllpipe.train``, and by name: every engine trains the same bits, and
what is exported loads strictly into the untouched network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision import models

import bllpipe
from bllpipe import cli
from bllpipe.config import load_config
from bllpipe.config.schema import ModelConfig
from bllpipe.errors import ConfigError
from bllpipe.launch import check_installed
from bllpipe.learn.block import make_block
from bllpipe.learn.distributions import channel_means, known_means
from bllpipe.models.registry import network_units
from bllpipe.models.units import Segment
from tests.support import jobs
from tests.support.networks.forwards import Sized, Skipping, Tokens

SETTINGS = {"data.batch_size": 16, "optimizer.lr": 0.05, "log.every_steps": 2}
BY_NAME = (
    "model.name=tests.support.networks.forwards:tokens",
    "data.name=synthetic",
    "data.synthetic_images=48",
    "data.synthetic_classes=3",
    "data.image_size=8",
    "data.batch_size=16",
    "blocks=[layers.0, layers.1]",
    "steps=4",
)

SQUEEZENET = (
    "model.name=torchvision:squeezenet1_1",
    "data.name=synthetic",
    "data.synthetic_images=16",
    "data.synthetic_classes=3",
    "data.image_size=32",
    "data.batch_size=8",
    "steps=2",
)


def split(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 8, 8] of five classes."""
    draws, labels = torch.Generator().manual_seed(seed), torch.arange(number) % 5
    centres = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    return centres[labels] + torch.randn(number, 3, 8, 8, generator=draws), labels


DATA = (split(64, 0), split(20, 1))


def seeded(rate: float = 0.0) -> Tokens:
    torch.manual_seed(0)
    return Tokens(rate=rate)


def test_an_object_is_trained_in_place_with_the_same_bits_in_every_engine(tmp_path: Path) -> None:
    digests = []
    for engine in ("sequential", "threads"):
        network = seeded()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        run = bllpipe.train(
            network,
            DATA,
            blocks=["layers.0", "layers.1"],
            epochs=2,
            engine=engine,
            run_dir=tmp_path / engine,
            settings=SETTINGS,
        )
        digests.append(run.state_sha256)
        after = network.state_dict()
        assert after.keys() == run.weights().keys()
        assert all(torch.equal(after[name], value) for name, value in run.weights().items())
        assert not torch.equal(after["position"], before["position"]) and torch.equal(after["unread"], before["unread"])
    assert digests[0] == digests[1]
    loaded = run.load(Tokens())
    assert torch.equal(loaded.eval()(DATA[1][0]), network.eval()(DATA[1][0]))


def test_backpropagation_and_balanced_cuts(tmp_path: Path) -> None:
    run = bllpipe.train(seeded(), DATA, objective="bp", epochs=1, run_dir=tmp_path / "bp", settings=SETTINGS)
    assert len(run.block_accuracy) == 1
    run = bllpipe.train(seeded(), DATA, blocks="balanced 2", epochs=1, run_dir=tmp_path / "two", settings=SETTINGS)
    assert len(run.block_accuracy) == 2
    plan = bllpipe.make_plan(seeded(), DATA, blocks=2, settings=SETTINGS, repetitions=2)
    assert len(plan.cut) == 1 and plan.cut[0] in plan.seconds


def test_random_layers_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**SETTINGS, "engine": "threads"}  # whose draws are not seeded
    bllpipe.train(seeded(0.3), DATA, blocks=["layers.1"], epochs=1, run_dir=tmp_path / "a", settings=settings)
    assert "layers.0, layers.1, layers.2 of the model draws random numbers" in capsys.readouterr().err


def test_feedback_alignment_needs_layers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was traced by torch.export, which keeps no layers whose feedback could"):
        bllpipe.train(Sized(), DATA, objective="fa", epochs=1, run_dir=tmp_path / "a", settings=SETTINGS)


def test_cut_gives_the_blocks() -> None:
    network = seeded()
    first, second = bllpipe.cut(network, ["layers.1"], image_shape=(3, 8, 8))
    assert first.get_submodule("patches") is network.patches
    x = DATA[1][0]
    assert torch.equal(second.eval()(first.eval()(x)), network.eval()(x))
    with pytest.raises(ConfigError, match=r"the model is Tokens, which is traced with images .*image_shape=\(3, 224"):
        bllpipe.cut(network, 2)  # type: ignore[call-overload]  # without the shape
    with pytest.raises(ConfigError, match="the model is Skipping, in which no place has one tensor alive alone"):
        bllpipe.cut(Skipping(), 2, image_shape=(6,))


@pytest.mark.ranks
def test_ranks_build_the_same_network_from_its_name(tmp_path: Path) -> None:
    expected = jobs.in_this_process(tmp_path / "a", "engine=sequential", *BY_NAME)["state_sha256"]
    done = jobs.ranks(4, jobs.words(tmp_path / "b", "engine=ranks", *BY_NAME))
    assert done.returncode == 0, done.stderr
    assert jobs.summary(tmp_path / "b")["state_sha256"] == expected


def test_a_pretrained_network_of_torchvision_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights for 7 classes, trained for 3, exported, and loaded into the untouched network."""
    file, run, out = tmp_path / "pretrained.safetensors", tmp_path / "run", tmp_path / "out.safetensors"
    torch.manual_seed(0)
    pretrained = models.squeezenet1_1(num_classes=7).state_dict()
    save_file(pretrained, file)
    settings = (f"model.weights={file}", "optimizer.lr=0.0", "blocks=2", "model.args.dropout=0.0", *SQUEEZENET)
    jobs.in_this_process(run, "engine=sequential", *settings)
    found = capsys.readouterr().err
    assert "another number of classes: classifier.1.weight, classifier.1.bias begin with random weights, for 3" in found
    assert "draws random" not in found
    assert cli.main(["export", str(run), str(out)]) == 0
    assert "checked: the file loads strictly into torchvision's own squeezenet1_1" in capsys.readouterr().out
    network = models.squeezenet1_1(num_classes=3)
    network.load_state_dict(load_file(out), strict=True)
    trained = network.state_dict()
    assert all(torch.equal(trained[name], pretrained[name]) for name in trained if not name.startswith("classifier"))
    with pytest.raises(bllpipe.CheckpointError, match="which is not called because a file says so"):
        bllpipe.load_network(out)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(bllpipe.load_network(out, args={})(x), network.eval()(x))
    assert cli.main(["export", str(run), str(out), "--to", "timm"]) == 2
    assert "is a network of torchvision, which timm does not have; use --to torchvision" in capsys.readouterr().err
    file.unlink()
    assert cli.main(["eval", str(run)]) == 0, "the checkpoint has the weights"


def test_check_shows_the_places(capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for text in ("blocks=2", *SQUEEZENET) for word in ("--set", text)]
    assert cli.main(["check", *words]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    (title,) = (line for line in lines if line.startswith("Places at which the network can be cut, "))
    assert int(title.split(", ")[1].split(":")[0]) > 20
    assert "features.0 [64, 15, 15] 1,792" in lines
    assert cli.main(["check", "--json", *words]) == 0
    places = json.loads(capsys.readouterr().out)["places"]
    assert {"unit": "features.0", "shape": [64, 15, 15], "parameters": 1792} in places


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"name": "torchvision:resnet17"},
            "is no classifier of torchvision; did you mean resnet1",
        ),
        ({"name": "torchvision:resnet18", "args": {"depth": 3}}, "cannot be built with these model.args: .*depth"),
        (
            {"name": "torchvision:resnet18", "args": {"num_classes": 3}},
            "model.args.num_classes is 3, but it is that of",
        ),
        ({"name": "torch.nn:Linear"}, "model.name=torch.nn:Linear cannot be called: .*; expected a function of in_ch"),
        ({"name": "torchvision:resnet18", "channels": 1}, "takes images of 3 channels, but those of the data have 1"),
    ],
)
def test_what_torchvision_does_not_have(model: dict[str, Any], message: str) -> None:
    settings = dict(model)
    shape = (settings.pop("channels", 3), 32, 32)
    with pytest.raises(ConfigError, match=message):
        network_units(ModelConfig(**settings), shape, 3, seed=0)


def test_timm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bllpipe.models.zoo.find_spec", lambda name: None)
    monkeypatch.setattr("bllpipe.launch.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package timm, which is not installed; .*'bllpipe\[timm\]'"):
        network_units(ModelConfig(name="timm:resnet26d.bt_in1k"), (3, 32, 32), 3, seed=0)
    with pytest.raises(ConfigError, match=r"model.name=timm:resnet26d needs the package timm, which is not installed"):
        check_installed(load_config(None, ["model.name=timm:resnet26d"]))


def _weights(**changes: Tensor) -> dict[str, Tensor]:
    return {**{name: value.clone() for name, value in seeded().state_dict().items()}, **changes}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "lacks head.bias, head.weight, layers.0.inner.bias, layers.0.inner.weight and"),
        (_weights(more=torch.ones(1)), "also holds more, which the network lacks; expected a file of exactly"),
        (
            _weights(position=torch.ones(1, 6, 8)),
            r"holds position as float32\[1, 6, 8\], but the network needs",
        ),
        (_weights(**{"head.weight": torch.ones(7, 9)}), r"holds head.weight as float32\[7, 9\]"),
        (_weights(**{"head.bias": torch.ones(5, dtype=torch.float64)}), r"holds head.bias as float64\[5\]"),
    ],
)
def test_weights_of_another_network(weights: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    model = ModelConfig(name="tests.support.networks.forwards:tokens", weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(ConfigError, match=message):
        network_units(model, (3, 8, 8), 5, seed=0)


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"w.pt cannot be read: .*\(of safetensors.torch.save_file, not of"):
        network_units(ModelConfig(weights=str(tmp_path / "w.pt")), (3, 8, 8), 5, seed=0)


def test_weights_of_a_resnet_by_name(tmp_path: Path) -> None:
    """Its units are built one by one, each with its part of the file."""
    torch.manual_seed(0)
    theirs = models.resnet18(num_classes=4)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    model = ModelConfig(name="resnet18", width=64, stem="imagenet", weights=str(tmp_path / "w.safetensors"))
    first, last = (Segment([unit], seed=0).state_dict() for unit in network_units(model, (3, 32, 32), 4, 0)[::7])
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in {**first, **last}.items())
    assert "conv1.weight" in first and "fc.weight" in last


@pytest.mark.parametrize(("tokens", "expected"), [("auto", "class"), ("mean", "mean"), ("class", "class")])
def test_head_and_message_read_the_class_token(tokens: str, expected: str) -> None:
    config = load_config(None, [*BY_NAME, f"objective.tokens={tokens}"])
    units = network_units(config.model, (3, 8, 8), 3, seed=0)
    (place,) = (number for number, unit in enumerate(units) if unit.name == "layers.1")
    assert units[place].has_class_token and units[place].shape == (5, 8)
    assert not units[0].has_class_token, "patches alone"
    block = make_block(Segment(units[: place + 1], 0), (3, 8, 8), (5, 8), config, 3, total_steps=4, is_last=False)
    alpha, label_B = torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 0])
    read_BC = alpha[:, 0] if expected == "class" else alpha.mean(dim=1)
    sums_KC, _ = block.stats(alpha, label_B)
    assert torch.allclose(sums_KC[0], read_BC[0] + read_BC[3])
    assert isinstance(block.head, torch.nn.Sequential) and torch.equal(block.head(alpha), block.head[1](read_BC))
    known, read = (alpha.clone().requires_grad_() for _ in range(2))
    known_means(known, read_BC, expected).sum().backward()
    channel_means(read, expected).sum().backward()
    assert known.grad is not None and read.grad is not None and torch.allclose(known.grad, read.grad)


def test_heads_of_tokens_are_built_again(tmp_path: Path) -> None:
    """The check of the export compares what both files say with the run."""
    run, files = tmp_path / "run", [str(tmp_path / name) for name in ("network.safetensors", "heads.safetensors")]
    jobs.in_this_process(run, "engine=sequential", *BY_NAME)
    assert cli.main(["export", str(run), files[0], "--to", "bllpipe", "--heads", files[1]]) == 0
