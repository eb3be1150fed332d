"""The scripts for GPUs, rehearsed on a CPU from the first line to the last, from a bare copy of the tree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.jobs import REPOSITORY

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]
SIZES = {"train": 320, "test": 64}


@pytest.fixture(scope="module")
def bare_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a machine is given: the tree without .git, and a python3 that is in no environment of its own."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("benchmarks", "bllpipe", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "setup.cfg", folder)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return folder


def rehearse(copy: Path, script: str, out: Path, *words: str) -> tuple[int, str]:
    """The exit code of a script, and what it prints."""
    done = subprocess.run(
        [copy / "benchmarks" / script, str(out), *words, "--device", "cpu", "--quick"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
        cwd=out.parent,
        env={"HOME": str(copy), "PATH": f"{copy / 'bin'}:/usr/bin:/bin"},
    )
    return done.returncode, done.stdout


def test_the_first_minutes(bare_copy: Path, tmp_path: Path) -> None:
    """Of two ways to capture one fails, on purpose: it is told, it is not measured, and all else is."""
    small = ("--set", "model.name=resnet18", "--set", "blocks=4")  # in the place of ResNet-50 and of its cuts
    words = ("--spoil", "bll one graph", "--seconds", "540", *small)
    code, text = rehearse(bare_copy, "first.sh", tmp_path / "out", *words)
    assert code == 1 and "these figures say nothing of a GPU" in text, text
    first = json.loads((tmp_path / "out" / "first.json").read_text())
    assert {name: each["works"] for name, each in first["smoke"].items()} == {
        "false": True,
        "blocks": True,
        "true": False,
    }
    assert "spoiled-on-purpose.npz does not exist" in first["smoke"]["true"]["error"]
    assert first["setting"] == "gpu.capture=blocks" and not first["compiled"]["works"]
    assert first["tests"]["exit_code"] == 0 and (tmp_path / "out" / "gpu-tests.log").read_text().count("SKIPPED") > 9
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())["results"]
    assert {each["variant"] for each in results} >= {"bp captured", "bll blocks", "bp eager"}
    assert not any(each["variant"].startswith("bll one graph") for each in results)
    assert (tmp_path / "out" / "first.log").read_text() == text, "all of it comes back"


def test_the_second_minutes(bare_copy: Path, tmp_path: Path) -> None:
    """One run fails as it is captured first: it is tried again with less, and the others with it."""
    draw, npz = np.random.default_rng(0), tmp_path / "set.npz"
    images = {f"{name}_x": draw.integers(0, 256, (size, 28, 28), np.uint8) for name, size in SIZES.items()}
    np.savez(npz, allow_pickle=False, **images, **{f"{name}_y": np.arange(size) % 10 for name, size in SIZES.items()})
    words = ("fashion_mnist", "--npz", str(npz), "--seconds", "540", "--spoil", "bll 4 blocks s0 true")
    code, text = rehearse(bare_copy, "second.sh", tmp_path / "out", *words)
    assert code == 1 and "these figures say nothing of a GPU" in text, text
    second = json.loads((tmp_path / "out" / "second.json").read_text())
    runs = [(each["run"], each["capture"], each["status"]) for each in second["runs"]]
    assert runs[:4] == [
        ("resnet18 bp s0", "true", "completed"),
        ("resnet18 bll 4 blocks s0", "true", "failed"),
        ("resnet18 bll 4 blocks s0", "blocks", "completed"),
        ("resnet18 bp s1", "true", "completed"),
    ]
    assert all(
        each["test_accuracy"] > 0 and each["epochs"] == 2 for each in second["runs"] if each["status"] != "failed"
    )


def test_without_data_it_says_what_to_get(bare_copy: Path, tmp_path: Path) -> None:
    code, text = rehearse(bare_copy, "second.sh", tmp_path / "out", "fashion_mnist", "--data", str(tmp_path))
    assert code == 2 and "apt-get download dataset-fashion-mnist" in text


def test_several_gpus(bare_copy: Path, tmp_path: Path) -> None:
    code, text = rehearse(bare_copy, "multi_gpu.sh", tmp_path / "out", "2")
    assert code == 0 and "these figures say nothing of GPUs" in text, text
    engines = [each["engine"] for each in json.loads((tmp_path / "out" / "multi-gpu.json").read_text())["results"]]
    assert engines == ["bll", "ddp"]


def test_without_torch_it_says_what_to_type(bare_copy: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [bare_copy / "benchmarks" / "first.sh", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    if "there is no GPU" in done.stderr + done.stdout:
        pytest.skip("the python3 in /usr/bin has torch")
    assert done.returncode == 2 and "name one that has: PYTHON=/path/to/python" in done.stderr
