"""Opening what a run has left, with real runs of a few steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bllpipe.checkpoint import CheckpointWriter, open_checkpoint
from bllpipe.data.registry import load_labels
from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.tools.analysis.finished_run import evaluation_batches, load_blocks, open_run
from tests.support import jobs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of block-local learning, with checkpoints of steps 6 and 12."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    jobs.in_this_process(path, "engine=sequential", *jobs.RESNET, "steps=12", "checkpoint.every_steps=6")
    return path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def silent(text: str) -> None:
    raise AssertionError(f"nothing to warn about: {text}")


def saved_again(run: Path, change: Callable[[dict[str, Tensor]], None], step: int = 13) -> None:
    """Adds a checkpoint of ``step`` whose tensors are changed."""
    tensors = open_checkpoint(run).tensors()
    change(tensors)
    writer = CheckpointWriter(run / "checkpoints", dist.HashStore(), 1, "again", 3)
    writer.write(step, 0, tensors, {"rank": 0})
    writer.wait_committed(step)


def test_the_blocks_hold_what_the_newest_checkpoint_holds(finished: Path) -> None:
    run = open_run(finished, silent)
    assert run.checkpoint.step == 12
    blocks = load_blocks(run)
    assert [block.segment.last_unit for block in blocks] == ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    saved = run.checkpoint.tensors()
    own = {name: value for block in blocks for name, value in block.learner.weights().items()}
    assert own.keys() == {name for name in saved if name.startswith(("model.", "heads."))}
    assert all(torch.equal(value, saved[name]) for name, value in own.items())


def test_a_whole_network_is_one_block(tmp_path: Path) -> None:
    jobs.in_this_process(tmp_path / "run", "engine=single", "method=bp", *jobs.RESNET, "steps=2")
    (block,) = load_blocks(open_run(tmp_path / "run", silent))
    assert block.segment.last_unit == "layer4.1"


def test_the_test_set_comes_in_the_runs_batches(finished: Path) -> None:
    run = open_run(finished, silent)
    images, labels = zip(*evaluation_batches(run), strict=True)
    assert [len(label_B) for label_B in labels] == [32] * 11 + [3]
    assert torch.equal(torch.cat(labels), load_labels(run.config.data, run.config.seed).test_N)
    pixels = next(iter(run.images.batches([("test", torch.arange(32))])))
    assert torch.allclose(images[0] * run.images.std[0] + run.images.mean[0], pixels / 255, atol=1e-6)


def test_the_recorded_accuracy_is_that_of_the_summary(finished: Path) -> None:
    assert open_run(finished, silent).recorded_accuracy == jobs.summary(finished)["test_accuracy"]


def test_what_was_measured_at_another_step_does_not_count(copied: Path) -> None:
    saved_again(copied, lambda tensors: None)
    assert open_run(copied, silent).recorded_accuracy is None


def test_a_run_that_stopped_has_no_recorded_accuracy(tmp_path: Path) -> None:
    """Three steps are an epoch: the summary has the accuracy of step 3, the checkpoint is that of step 4."""
    settings = (*jobs.RESNET, "data.batch_size=480", "steps=9", "stop_at=4")
    assert jobs.in_this_process(tmp_path / "run", "engine=sequential", *settings)["test_accuracy"] is not None
    run = open_run(tmp_path / "run", silent)
    assert (run.checkpoint.step, run.recorded_accuracy) == (4, None)
    assert len(load_blocks(run)) == 4


def test_a_run_without_summary_can_be_opened(copied: Path) -> None:
    (copied / "summary.json").unlink()
    assert open_run(copied, silent).recorded_accuracy is None


def test_a_damaged_checkpoint_is_told_and_passed_over(copied: Path) -> None:
    newest = copied / "checkpoints" / "step-00000012" / "rank-0.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    told: list[str] = []
    assert open_run(copied, told.append).checkpoint.step == 6
    assert len(told) == 1 and "step-00000012" in told[0]


def test_a_run_without_checkpoint(copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint yet; resume the run: --run-dir .*copied --resu"):
        open_run(copied, silent)


def test_a_config_that_is_wrong(copied: Path) -> None:
    (copied / "config.yaml").write_text("seeed: 1\n")
    with pytest.raises(ConfigError, match="seeed"):
        open_run(copied, silent)


def test_missing_weights_are_named(copied: Path) -> None:
    def forget(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("heads.layer2.1") or name == "model.fc.bias"]:
            del tensors[name]

    saved_again(copied, forget)
    with pytest.raises(CheckpointError, match=r"13 lacks heads.layer2.1.2.bias, .*weight, model.fc.bias; expected a c"):
        load_blocks(open_run(copied, silent))


def test_of_many_missing_weights_a_few_are_named(copied: Path) -> None:
    saved_again(copied, lambda tensors: tensors.clear())
    with pytest.raises(CheckpointError, match=r"lacks heads.layer1.1.2.bias, .* and \d\d\d more; expected"):
        load_blocks(open_run(copied, silent))


def test_weights_of_another_shape_are_named(copied: Path) -> None:
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace("width: 4", "width: 8"))
    needed = (
        r"heads.layer1.1.2.weight as \[10, 256\], but .*config.yaml and the data make it \[10, 512\]; give the config"
    )
    with pytest.raises(CheckpointError, match=needed):
        load_blocks(open_run(copied, silent))
