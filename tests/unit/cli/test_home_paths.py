"""~ at the start of a path is the home directory, also where no shell has replaced it: ``--run-dir=~/x``, Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bllpipe
from bllpipe import cli, launch
from bllpipe.config import load_config
from tests.support import jobs

SHORT = ("engine=sequential", "method=dgl", "steps=1", "model.width=4", "data.batch_size=8")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, and an empty directory in which the run starts."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize("key", ["data.path", "model.weights", "metrics.discovery", "metrics.textfile"])
@pytest.mark.parametrize(
    ("text", "read"),
    [("~/x", "{home}/x"), ("~", "{home}"), ("./~", "./~"), ("a~/x", "a~/x"), ("~nobody-9/x", "~nobody-9/x")],
)
def test_paths_of_a_config(key: str, text: str, read: str, home: Path) -> None:
    section, _, name = key.partition(".")
    settings = ["data.name=npz", "data.path=x.npz", "metrics.port=0", f'{key}="{text}"']
    assert getattr(getattr(load_config(None, settings), section), name) == read.format(home=home)


def test_a_run_and_what_is_made_of_it(home: Path) -> None:
    images, labels = np.zeros((16, 8, 8), np.uint8), np.arange(16) % 4
    np.savez(home / "set.npz", train_x=images, train_y=labels, test_x=images, test_y=labels)
    settings = [*SHORT, "data.name=npz", "data.path=~/set.npz"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert launch.main([*words, "--run-dir=~/run", "--quiet"]) == 0
    assert jobs.summary(home / "run")["steps"] == 1
    assert cli.main(["eval", str(home / "run"), "--data-path=~/set.npz", "--json=~/tested.json"]) == 0
    assert cli.main(["export", str(home / "run"), str(home / "net.safetensors"), "--heads=~/heads.safetensors"]) == 0
    assert isinstance(bllpipe.load_network("~/net.safetensors"), nn.Module)
    assert isinstance(bllpipe.load_ensemble("~/net.safetensors", "~/heads.safetensors"), nn.Module)
    assert cli.main(["report", str(home / "run"), "--out=~/page.html"]) == 0
    assert {"run", "tested.json", "heads.safetensors", "page.html"} < {path.name for path in home.iterdir()}
    assert not list(Path.cwd().iterdir())


def test_a_script(home: Path) -> None:
    (home / "a.yaml").write_text("epochs: 1\n")
    run = train("~/run")
    assert run.directory == home / "run" and (home / "run" / "summary.json").is_file()
    assert bllpipe.Run("~/run").state_sha256 == run.state_sha256
    assert not list(Path.cwd().iterdir())


def test_a_directory_with_this_name_is_written_with_a_dot(home: Path) -> None:
    (home / "a.yaml").write_text("epochs: 1\n")
    run = train("./~/run")
    assert run.summary["steps"] == 2 and Path("~", "run", "summary.json").is_file()
    assert not (home / "run").exists()


def train(run_dir: str) -> bllpipe.Run:
    """Two steps in one epoch, as a file in the home directory says."""
    data = torch.randn(64, 4), torch.arange(64) % 2
    settings = {"data.batch_size": 32}
    modules = [nn.Linear(4, 4), nn.Linear(4, 2)]
    return bllpipe.train(modules, (data, data), blocks=2, config="~/a.yaml", settings=settings, run_dir=run_dir)
