"""Arguments of a script: NumPy's numbers are numbers, arrays are lists, and the rest is refused with words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bllpipe
from bllpipe.api.models import plain
from bllpipe.api.train import TrainArguments, build_config
from tests.support.networks.api import DATA, network, seeded_network

SMALL = {"data.batch_size": 32}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("sgd"), "sgd"),
        (np.array(3), 3),
        (torch.tensor(3), 3),
        (torch.tensor(0.5), 0.5),
        (np.array([2, 4]), [2, 4]),
        (torch.tensor([2, 4]), [2, 4]),
        ((np.int64(2), "stem", np.str_("head")), [2, "stem", "head"]),
        (range(2, 5, 2), [2, 4]),
        (Path("a") / "b", "a/b"),
        ({"hidden": np.int64(3), "sizes": (np.int32(1),)}, {"hidden": 3, "sizes": [1]}),
        (None, None),
    ],
)
def test_values_become_those_of_a_file(value: Any, expected: Any) -> None:
    found = plain(value)
    assert found == expected and type(found) is type(expected)
    if isinstance(found, list):
        assert [type(item) for item in found] == [type(item) for item in expected]


def test_numbers_of_numpy_train_the_same_run() -> None:
    one = bllpipe.train(seeded_network(), DATA, blocks=2, epochs=2, settings={**SMALL, "seed": 3, "optimizer.lr": 0.5})
    settings = {"data.batch_size": np.int16(32), "seed": np.uint32(3), "optimizer.lr": np.float32(0.5)}
    other = bllpipe.train(seeded_network(), DATA, blocks=np.int64(2), epochs=np.int64(2), settings=settings)  # type: ignore[arg-type]  # on purpose
    assert one.state_sha256 == other.state_sha256
    assert (one.directory / "config.yaml").read_text() == (other.directory / "config.yaml").read_text()


def test_cuts_and_plans_take_them_too() -> None:
    number: Any = np.int64(2)
    assert [len(block) for block in bllpipe.cut(network(), number)] == [2, 1]
    assert [len(block) for block in bllpipe.cut(network(), np.array([1]))] == [1, 2]  # type: ignore[call-overload]  # an array
    plan = bllpipe.make_plan(network(), DATA, number, settings=SMALL, repetitions=number)
    assert len(plan.cut) == 1
    blocks: Any = np.array([1, 2])
    said = TrainArguments(blocks=blocks, settings={"model.name": "my:net", "model.args": {"hidden": np.int64(5)}})
    config = build_config(None, None, said)
    assert config.blocks == [1, 2] and type(config.model.args["hidden"]) is int


def test_one_key_to_accept_and_a_path_to_resume(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"blocks": 2, "settings": SMALL, "run_dir": tmp_path / "run"}
    bllpipe.train(seeded_network(), DATA, epochs=1, **arguments)
    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    longer = bllpipe.train(seeded_network(), DATA, epochs=2, resume=checkpoint, accept="epochs", **arguments)
    assert longer.summary["epochs"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"settings": ["epochs=3"]},
            "settings is a list; expected keys and values; use settings={'optimizer",
        ),
        ({"config": {"epochs": 3}}, r"config is a dict; expected the path of a YAML file; use settings={...} for keys"),
        ({"resume": True}, "resume is a bool; expected text or a path; use resume='auto', 'never', or the path"),
        ({"run_dir": 3}, "run_dir is a int; expected text or a path; use a directory"),
        ({"run_dir": b"runs"}, "run_dir is a bytes; expected text or a path"),
        ({"epochs": 2.5}, "epochs is 2.5"),
        ({"epochs": np.float64(2.5)}, "epochs is 2.5"),
        ({"blocks": np.array([1.5])}, r"blocks is \[1.5\]"),
        ({"accept": "optimizer.rate", "resume": "auto"}, "unknown key 'optimizer.rate'"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(bllpipe.ConfigError, match=message):
        bllpipe.train(network(), DATA, **arguments)


def test_a_process_without_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that embeds Python."""
    monkeypatch.setattr("sys.argv", [])
    with pytest.raises(bllpipe.ConfigError, match="use torchrun --nproc_per_node=2 SCRIPT.py, or engine='threads'"):
        bllpipe.train(network(), DATA, blocks=1, engine="ranks")


@pytest.mark.parametrize("blocks", [0, -1, np.int64(0)])
def test_no_blocks_at_all(blocks: Any) -> None:
    with pytest.raises(bllpipe.ConfigError, match=rf"blocks={blocks}; expected at least 1; use a number from 1 to 3"):
        bllpipe.cut(network(), blocks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": 2.0}, "blocks is 2.0; expected at least 1, a whole number"),
        ({"blocks": "balanced 2"}, "blocks is 'balanced 2'; expected at least 1, a whole number"),
        ({"blocks": 2, "repetitions": 2.5}, "repetitions is 2.5; expected at least 2, a whole number"),
        ({"blocks": 2, "gigabytes_per_second": 0}, "gigabytes_per_second is 0; expected a number above 0"),
    ],
)
def test_plans_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(bllpipe.ConfigError, match=message):
        bllpipe.make_plan(nn.Sequential(*network()), DATA, **arguments)


def test_a_cut_by_a_fraction() -> None:
    with pytest.raises(bllpipe.ConfigError, match="blocks is 2.5; cut takes a number or a list"):
        bllpipe.cut(network(), 2.5)  # type: ignore[call-overload]  # on purpose
