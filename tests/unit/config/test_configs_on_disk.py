"""The configs that we ship load, say something about every key, and mean what their comments say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bllpipe.config import Config, load_config
from bllpipe.config.loader import flat, known_keys
from bllpipe.launch import check_plan

FOLDER = Path(__file__).parents[3] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_the_experiments_of_the_paper_are_there() -> None:
    assert {"digits", "cifar10_resnet50", "cifar100_resnet50", "fashion_mnist_resnet50", "cifar10_small"} <= {
        file.stem for file in FILES
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_loads_and_can_be_planned(file: Path) -> None:
    check_plan(load_config(str(file)))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_key_stands_there_with_a_comment(file: Path) -> None:
    text = file.read_text()
    assert set(flat(yaml.safe_load(text))) - {"model.args"} == set(known_keys()) - {"model.args"}
    keys = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert [line for line in keys if "  # " not in line] == []


def test_digits_are_the_embedded_default() -> None:
    assert load_config(str(FOLDER / "digits.yaml")) == Config()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_the_paper_is_resnet50_in_four_equal_blocks(name: str) -> None:
    config = load_config(str(FOLDER / f"{name}_resnet50.yaml"))
    assert (config.model.name, config.model.width, config.num_blocks) == ("resnet50", 64, 4)
    assert (config.data.name, config.method, config.feedback.layers) == (name, "bll", 1)
