"""On one GPU, with deterministic kernels: taking turns, in a wavefront, ordinary, captured or as one graph, the same
bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.machines import needs_gpus
from tests.support import jobs

pytestmark = [needs_gpus(1), pytest.mark.usefixtures("own_choices"), pytest.mark.timeout(120, method="thread")]
SETTINGS = (
    "device=cuda",
    "gpu.deterministic=true",
    "model.width=16",
    "data.augment.rotation=0",
    "steps=40",
    "log.every_steps=10",
)


def digest(folder: Path, *settings: str) -> str:
    return str(jobs.in_this_process(folder, *SETTINGS, *settings)["state_sha256"])


@pytest.mark.parametrize("method", ["bll", "dgl", "predsim"])
def test_a_wavefront_gives_the_bits_of_blocks_that_take_turns(tmp_path: Path, method: str) -> None:
    expected = digest(tmp_path / "turns", "engine=sequential", f"method={method}")
    assert digest(tmp_path / "streams", "engine=streams", f"method={method}") == expected
    assert digest(tmp_path / "again", "engine=streams", f"method={method}") == expected


@pytest.mark.parametrize("captured", ["engine=sequential gpu.capture=true", "engine=streams gpu.capture=blocks"])
@pytest.mark.parametrize("more", [(), ("optimizer.name=adamw", "optimizer.clip_norm=1.0")], ids=["sgd", "adamw"])
def test_a_captured_step_gives_the_bits_of_an_ordinary_one(
    tmp_path: Path, captured: str, more: tuple[str, ...]
) -> None:
    expected = digest(tmp_path / "ordinary", "engine=sequential", *more)
    assert digest(tmp_path / "captured", *captured.split(), *more) == expected


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("optimizer.name=adamw", "optimizer.clip_norm=1.0", "schedule.name=cosine"),
        ("feedback.update=sgd", "feedback.lag=2"),
        ("precision.wire=bf16", "precision.compute=bf16"),
        ("method=predsim", "data.name=synthetic", "data.synthetic_images=640", "evaluate.every_epochs=1"),
        ("gpu.images=host", "channels_last=false"),
        ("evaluate.ensemble=true", "evaluate.every_epochs=1", "precision.wire=bf16"),
    ],
    ids=" ".join,
)
def test_one_graph_gives_the_bits_of_blocks_that_take_turns(tmp_path: Path, more: tuple[str, ...]) -> None:
    expected = digest(tmp_path / "turns", "engine=sequential", *more)
    assert digest(tmp_path / "graph", "engine=streams", "gpu.capture=true", *more) == expected


def test_backpropagation_captured_gives_the_same_bits(tmp_path: Path) -> None:
    settings = ("method=bp", "engine=single")
    expected = digest(tmp_path / "ordinary", *settings)
    assert digest(tmp_path / "captured", *settings, "gpu.capture=true") == expected


@pytest.mark.parametrize("images", ["device", "host"])
def test_images_give_the_same_bits_from_anywhere(tmp_path: Path, images: str) -> None:
    expected = digest(tmp_path / "auto", "engine=streams")
    assert digest(tmp_path / images, "engine=streams", f"gpu.images={images}") == expected


def test_a_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    settings = ("engine=streams", "gpu.capture=true", "checkpoint.every_steps=15")
    expected = digest(tmp_path / "straight", *settings)
    digest(tmp_path / "run", *settings, "stop_at=20")
    resumed = jobs.in_this_process(tmp_path / "run", *SETTINGS, *settings, options=("--resume", "auto"))
    assert resumed["state_sha256"] == expected
