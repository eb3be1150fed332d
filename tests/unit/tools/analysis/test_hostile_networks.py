"""Exported networks, summaries and spans that somebody else has written: refused, and in little memory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bllpipe.errors import CheckpointError
from bllpipe.tools.analysis.finished_run import open_run, some
from bllpipe.tools.analysis.network_file import load_network, read_network, whole_network
from bllpipe.tools.analysis.timeline import read_timeline
from tests.support import jobs
from tests.support.memory import little_memory

RESNET = {"model": "resnet18", "stem": "cifar", "width": "4", "image_shape": "[1, 8, 8]", "num_classes": "10"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A network of width 4 with random weights."""
    save_file(whole_network(RESNET).state_dict(), tmp_path / "network", RESNET)
    return tmp_path / "network"


def changed(file: Path, metadata: dict[str, str] | None = None, **weights: Any) -> None:
    """Writes the file again; a weight of None is left out."""
    found, tensors = read_network(file)
    kept = {name: value.clone() for name, value in {**tensors, **weights}.items() if value is not None}
    file.unlink()
    save_file(kept, file, {**found, **(metadata or {})})


def test_the_good_one_is_good_also_by_a_link(file: Path) -> None:
    file.with_name("link").symlink_to(file)
    one, two = load_network(file).state_dict(), load_network(file.with_name("link")).state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"width": "9" * 5000}, "the metadata describe no ResNet"),
        ({"width": "1000001"}, "the metadata describe no ResNet"),
        ({"width": "0"}, "the metadata describe no ResNet"),
        ({"model": "resnet18" * 999}, "the metadata describe no ResNet"),
        ({"model": "os:system"}, "made by os:system, which is not called because a file says so"),
        ({"num_classes": "9" * 5000}, "do not say what images and how many classes"),
        ({"num_classes": "-1"}, "do not say what images and how many classes"),
        ({"image_shape": "[1e400, 8, 8]"}, "do not say what images and how many classes"),
        ({"image_shape": "[0, 8, 8]"}, "do not say what images and how many classes"),
        ({"image_shape": "[" * 99_999}, "do not say what images and how many classes"),
        ({"image_shape": '["1", 8, 8]'}, "do not say what images and how many classes"),
        ({"image_shape": "[1000001, 8, 8]"}, "do not say what images and how many classes"),
    ],
)
def test_metadata_that_no_network_has(file: Path, metadata: dict[str, str], message: str) -> None:
    changed(file, metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_network(file)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "metadata", [{"width": "1000000"}, {"num_classes": "999999"}, {"image_shape": "[999999, 8, 8]"}]
)
def test_a_network_of_terabytes_is_not_built(file: Path, metadata: dict[str, str]) -> None:
    load_network(file)  # what torch needs for networks without memory is there now
    changed(file, metadata)
    with (
        little_memory(),
        pytest.raises(
            CheckpointError, match=r"network does not hold exactly the weights of the network: it holds .* as"
        ),
    ):
        load_network(file)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"fc.bias": None, "fc.weight": None}, "it lacks fc.bias, fc.weight"),
        ({"\033[2J": torch.ones(1)}, r"it also holds '\\x1b\[2J'"),
        ({"fc.bias": torch.ones(1)}, r"it holds fc.bias as float32\[1\], expected float32\[10\]"),
        ({"fc.bias": torch.ones(10).double()}, r"it holds fc.bias as float64\[10\], expected float32\[10\]"),
        ({"bn1.num_batches_tracked": torch.tensor(0.5)}, r"it holds bn1.num_batches_tracked as float32\[\], "),
    ],
)
def test_weights_of_another_kind(file: Path, weights: dict[str, Any], message: str) -> None:
    changed(file, **weights)
    with pytest.raises(CheckpointError, match=f"network does not hold exactly the weights of the network: {message}"):
        load_network(file)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe is damaged: it is a pipe"):
        load_network(tmp_path / "pipe")


def test_names_without_end_are_cut_short() -> None:
    assert some(["a", "b\n"]) == "a, 'b\\n'"
    assert some(["a", "b", "c"], most=2) == "a, b and 1 more"
    assert len(some(["x" * 9999] * 9)) < 600


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    jobs.in_this_process(path, "engine=sequential", *jobs.SMALL, "steps=2", "trace.num_steps=1")
    return path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.mark.parametrize("accuracy", ["0.9", [0.9], {}, True, -0.5, 1e400, None])
def test_an_accuracy_that_is_none_does_not_count(copied: Path, accuracy: Any) -> None:
    summary = {**jobs.summary(copied), "test_accuracy": accuracy}
    (copied / "summary.json").write_text(json.dumps(summary))
    assert open_run(copied, print).recorded_accuracy is None


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 99_999])
def test_a_summary_that_is_none(copied: Path, text: str) -> None:
    (copied / "summary.json").write_text(text)
    with pytest.raises(CheckpointError, match="summary.json is damaged: it is not"):
        open_run(copied, print)


def test_spans_beyond_all_numbers_are_left_out(copied: Path) -> None:
    file = copied / "spans" / "rank-0.jsonl"
    second = file.read_text().splitlines()[1]
    with file.open("a") as spans:
        spans.write(json.dumps({**json.loads(second), "end": 1e400}) + "\n")
    heard: list[str] = []
    read_timeline(copied, heard.append)
    assert len(heard) == 1 and "damaged lines, left out: 1 of" in heard[0]
