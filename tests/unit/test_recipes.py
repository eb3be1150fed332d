"""The recipes of CONTRIBUTING.md: a loss, a head, an engine, a data set, each one file and one line in a registry.

Each test writes the file, registers it as the recipe says, for the time of the test, and trains a few steps with it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest

from bllpipe import engines
from bllpipe.config import Config, load_config
from bllpipe.data import registry
from bllpipe.engines import Options, engine
from bllpipe.learn.heads import HEADS
from bllpipe.learn.losses import OBJECTIVES
from tests.support import jobs

SETTINGS = ["engine=sequential", "model.width=4", "blocks=2", "steps=3", "log.every_steps=1"]
Write = Callable[[str, str], ModuleType]

LOSS = """
    from torch.nn.functional import multi_margin_loss


    def margin(config, alpha_shape, num_classes):
        def terms(alpha, scores_BK, target, x):
            return {"margin": config.pred_weight * multi_margin_loss(scores_BK.float(), target.label_B)}

        return terms
"""
HEAD = """
    from torch import nn


    def largest(alpha_shape, num_classes, config):
        return nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(1), nn.Linear(alpha_shape[0], num_classes))
"""
ENGINE = """
    from bllpipe.engines.in_process import local_links, run_in_process


    def run(config, options):
        return run_in_process(config, options, in_turns, local_links)


    def in_turns(job, workers, links):
        *blocks, feedback = workers
        for entry in job.steps("all"):
            for worker in (feedback, *blocks):
                for actor in worker.actors:
                    worker.run_round(actor, entry)
"""
DATA = """
    import torch

    from bllpipe.data.base import Arrays
    from bllpipe.utils.tensors import stream


    def bars(data, seed):
        def split(count, name):
            label_N = torch.arange(count) % 2
            image_NHW = torch.randint(100, (count, 8, 8), generator=stream(seed, "bars", name), dtype=torch.uint8)
            image_NHW[label_N == 0, 3] += 100
            image_NHW[label_N == 1, :, 3] += 100
            return image_NHW.unsqueeze(1), label_N

        return Arrays(*split(256, "train"), *split(64, "test"), num_classes=2)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module and imports it; it is gone behind the test."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(dedent(source))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    yield write


def train(run_dir: Path, config: Config) -> dict[str, Any]:
    """The summary of a run of ``config``."""
    assert engine(config.engine)(config, Options(run_dir=str(run_dir), output="quiet")) == 0
    return jobs.summary(run_dir)


def test_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setitem(OBJECTIVES, "margin", write("own_loss", LOSS).margin)
    found = train(tmp_path / "run", replace(load_config(None, SETTINGS), method="margin"))  # type: ignore[arg-type]
    assert found["steps"] == 3
    blocks = [line for line in jobs.metrics(tmp_path / "run") if "margin" in line]
    assert {line["actor"] for line in blocks} == {"block 0"}  # the last block has the loss of the network


def test_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setitem(HEADS, "largest", write("own_head", HEAD).largest)
    plain = load_config(None, SETTINGS)
    other = replace(plain, objective=replace(plain.objective, head="largest"))  # type: ignore[arg-type]
    found = train(tmp_path / "run", other)
    assert found["steps"] == 3
    assert found["state_sha256"] != train(tmp_path / "plain", plain)["state_sha256"]


def test_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    """In its module, under the package's name, and among the names; it ends in the bits of ``sequential``."""
    monkeypatch.setitem(sys.modules, "bllpipe.engines.turns", write("turns", ENGINE))
    monkeypatch.setattr(engines, "NAMES", (*engines.NAMES, "turns"))
    plain = load_config(None, SETTINGS)
    found = train(tmp_path / "run", replace(plain, engine="turns"))  # type: ignore[arg-type]
    assert found["state_sha256"] == train(tmp_path / "plain", plain)["state_sha256"]


def test_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    """Its loader is a line of ``LOADERS``."""
    monkeypatch.setitem(registry.LOADERS, "bars", write("own_data", DATA).bars)
    plain = load_config(None, SETTINGS)
    found = train(tmp_path / "run", replace(plain, data=replace(plain.data, name="bars")))  # type: ignore[arg-type]
    assert found["steps"] == 3
    assert registry.load_labels(replace(plain.data, name="bars"), seed=0).num_classes == 2  # type: ignore[arg-type]
