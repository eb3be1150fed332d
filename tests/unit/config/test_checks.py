"""Combinations that cannot work are refused with what to type, and their nearest neighbours are accepted."""

import re
from pathlib import Path

import pytest

from bllpipe.config import Config, load_config
from bllpipe.errors import ConfigError

OWN_MODEL = "model.name=package.module:function"
KINDS = ["alpha", "target", "stats"]


def refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_config(None, overrides)


@pytest.mark.parametrize(("steps", "stop_at"), [(5, 6), (1, 100)])
def test_stop_behind_the_end(steps: int, stop_at: int) -> None:
    refused(
        [f"steps={steps}", f"stop_at={stop_at}"],
        f"stop_at is {stop_at}, but the run has only {steps} steps; lower stop_at or raise steps",
    )


@pytest.mark.parametrize("blocks", [0, -1])
def test_fewer_than_one_block(blocks: int) -> None:
    refused([f"blocks={blocks}"], f"blocks is {blocks}; needed is at least 1")


@pytest.mark.parametrize("blocks", ["[]", "[4, 4]", "[4, 2, 4]", "['layer2.1', 'layer2.1']"])
def test_cuts_at_one_place(blocks: str) -> None:
    refused([f"blocks={blocks}"], f"blocks is {blocks}; needed are cuts at different places, for example [4, 8, 12]")


@pytest.mark.parametrize("blocks", ["[0]", "[-1, 4]", "[4, 2]", "[4, 'layer3.0', 2]"])
def test_cuts_that_do_not_grow(blocks: str) -> None:
    refused(
        [f"blocks={blocks}"],
        f"blocks is {blocks}; needed are numbers of units that grow from 1, for example [4, 8, 12]",
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet19", "; did you mean 'resnet18'?"),
        ("resnet5", "; did you mean 'resnet50'?"),
        ("transformer", ""),
    ],
)
def test_unknown_model(name: str, hint: str) -> None:
    refused(
        [f"model.name={name}"],
        f"model.name is '{name}'; needed is one of resnet18, resnet34, resnet50, resnet101, resnet152 "
        f"or package.module:function{hint}",
    )


def test_arguments_for_a_model_that_takes_none() -> None:
    refused(
        ["model.name=resnet34", "model.args.depth=3"],
        "model.args are for package.module:function; resnet34 has model.width and model.stem",
    )


@pytest.mark.parametrize("name", ["imagefolder", "npz"])
def test_data_that_need_a_path(name: str) -> None:
    refused(
        [f"data.name={name}"],
        f"data.name {name} needs to know where the images are; use --set data.path=PATH",
    )


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_data_that_read_no_files(name: str, tmp_path: Path) -> None:
    refused(
        [f"data.name={name}", f"data.path={tmp_path}"],
        f"data.path is '{tmp_path}', but {name} reads no files; leave it out",
    )


@pytest.mark.parametrize("momentum", ["0", "0.0"])
def test_nesterov_without_momentum(momentum: str) -> None:
    refused(
        [f"optimizer.momentum={momentum}"],
        "optimizer.nesterov needs momentum; use --set optimizer.nesterov=false",
    )


@pytest.mark.parametrize("betas", ["[]", "[0.9]", "[0.9, 0.99, 0.999]", "[0.9, 1.0]", "[-0.1, 0.9]"])
def test_impossible_betas(betas: str) -> None:
    refused([f"optimizer.betas={betas}"], f"optimizer.betas is {betas}; needed are two numbers from 0 to below 1")


@pytest.mark.parametrize("milestones", ["[0.0]", "[1.0]", "[0.5, 1.5]", "[-0.5]", "[0.6, 0.3]", "[0.3, 0.3]"])
def test_impossible_milestones(milestones: str) -> None:
    refused(
        [f"schedule.milestones={milestones}"],
        f"schedule.milestones is {milestones}; needed are growing fractions between 0 and 1",
    )


def test_closed_form_of_several_layers() -> None:
    refused(
        ["feedback.layers=2"],
        "feedback.layers is 2, but closed_form solves a single linear layer; use --set feedback.update=sgd",
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["threads", "sequential"])
def test_nccl_in_one_process(kind: str, engine: str) -> None:
    refused(
        [f"backend.{kind}=nccl", f"engine={engine}"],
        f"backend.{kind} is nccl, but engine {engine} has one process; use auto",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nccl_on_a_cpu(kind: str) -> None:
    refused(
        [f"backend.{kind}=nccl", "device=cpu"],
        f"backend.{kind} is nccl, but device is cpu; use --set backend.{kind}=gloo",
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["steps=5", "stop_at=5"],
        ["stop_at=5"],
        ["blocks=1"],
        ["blocks=[1]"],
        ["blocks=[layer1.1, layer3.0]"],
        ["blocks=[2, layer3.0, 6]"],
        ["model.name=resnet50", "blocks=[4, 8, 12]"],
        [OWN_MODEL],
        [OWN_MODEL, "model.args.depth=3"],
        ["optimizer.momentum=0", "optimizer.nesterov=false"],
        ["optimizer.momentum=0", "optimizer.name=adamw"],
        ["optimizer.betas=[0, 0.999]"],
        ["schedule.milestones=[]"],
        ["schedule.milestones=[0.001, 0.999]"],
        ["feedback.layers=2", "feedback.update=sgd"],
        ["feedback.layers=2", "feedback.update=fixed"],
        *([f"backend.{kind}=nccl", "device=cuda"] for kind in KINDS),
        *([f"backend.{kind}=gloo", "device=cpu"] for kind in KINDS),
    ],
)
def test_nearest_neighbours_that_work(overrides: list[str]) -> None:
    assert load_config(None, overrides) != Config()
