"""Where a run lives, and what it may go on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from bllpipe.checkpoint import CheckpointWriter
from bllpipe.checkpoint.resume import changes_since, checkpoint_to_resume, choose_directory, default_name
from bllpipe.config import Config, load_config, to_mapping
from bllpipe.errors import CheckpointError, ConfigError
from tests.support.checkpoint_samples import sample, write_checkpoint


def saved(directory: Path, config: Config, step: int = 3) -> Path:
    """A run directory with a checkpoint of ``step``."""
    writer = CheckpointWriter(directory / "checkpoints", dist.HashStore(), 1, "first", 3)
    writer.write(step, 0, sample(0, step), {"rank": 0, "step": step, "config": to_mapping(config)})
    writer.wait_committed(step)
    (directory / "config.yaml").write_text("")
    return directory


def silent(text: str) -> None:
    raise AssertionError(f"nothing to warn about: {text}")


def test_a_new_run_gets_a_new_directory(tmp_path: Path) -> None:
    config = Config()
    assert choose_directory(config, "never", None, tmp_path) == tmp_path / "digits-resnet18-bll"
    for number in ("", "-2"):
        (tmp_path / f"digits-resnet18-bll{number}").mkdir()
    assert choose_directory(config, "never", None, tmp_path) == tmp_path / "digits-resnet18-bll-3"


def test_auto_takes_the_latest_run_of_the_name_or_a_new_one(tmp_path: Path) -> None:
    config = load_config(None, ["name=mine"])
    assert choose_directory(config, "auto", None, tmp_path) == tmp_path / "mine"
    for name in ("mine", "mine-2"):
        (tmp_path / name).mkdir()
    assert choose_directory(config, "auto", None, tmp_path) == tmp_path / "mine-2"


def test_a_checkpoint_by_path_goes_on_in_its_own_run(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", Config())
    checkpoint = next((run / "checkpoints").glob("step-*"))
    assert choose_directory(Config(), str(checkpoint), None, tmp_path / "elsewhere") == run


def test_a_directory_that_holds_a_run_is_not_started_anew(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", Config())
    with pytest.raises(ConfigError, match=r"holds a run already; add --resume auto to resume it, or use another"):
        choose_directory(Config(), "never", str(run))
    assert choose_directory(Config(), "auto", str(run)) == run


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "digits-resnet18-bll"),
        (["data.name=cifar10", "model.name=resnet50"], "cifar10-resnet50-bll"),
        (["model.name=my.package:build"], "digits-build-bll"),
    ],
)
def test_the_name_of_a_run(overrides: list[str], name: str) -> None:
    assert default_name(load_config(None, overrides)) == name


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert checkpoint_to_resume("auto", tmp_path, silent) is None
    run = saved(tmp_path / "run", Config())
    assert checkpoint_to_resume("never", run, silent) is None
    assert checkpoint_to_resume("never", tmp_path / "new", silent, restarted=True) is None


def test_a_restarted_group_goes_on_from_its_own_checkpoint_or_does_as_it_was_told(tmp_path: Path) -> None:
    """It once began at step 0 when it ended before its first checkpoint in a directory of its own."""
    origin, own = saved(tmp_path / "origin", Config()), tmp_path / "own"
    first = checkpoint_to_resume(str(origin), own, silent, restarted=True)
    assert first is not None and first.path.parent.parent == origin
    saved(own, Config(), step=5)
    second = checkpoint_to_resume(str(origin), own, silent, restarted=True)
    assert second is not None and (second.path.parent.parent, second.step) == (own, 5)
    third = checkpoint_to_resume("never", own, silent, restarted=True)
    assert third is not None and third.step == 5


def found(run: Path, overrides: list[str], *accepted: str, resume: str = "auto") -> list[str]:
    """What has changed since the checkpoint, if it may."""
    checkpoint = checkpoint_to_resume(resume, run, silent)
    assert checkpoint is not None
    return [change.key for change in changes_since(checkpoint, load_config(None, overrides), accepted, run)]


@pytest.mark.parametrize(
    "override",
    [
        "engine=threads",
        "stop_at=5",
        "log.every_steps=1",
        "checkpoint.keep=1",
        "backend.ring=7",
        "name=other",
        "metrics.port=9500",
    ],
)
def test_settings_that_change_no_result_may_change(tmp_path: Path, override: str) -> None:
    assert found(saved(tmp_path / "run", Config()), [override]) == [override.partition("=")[0]]


def test_every_other_change_is_refused_key_by_key(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", Config())
    with pytest.raises(ConfigError) as caught:
        found(run, ["seed=1", "optimizer.lr=0.5", "log.every_steps=1"])
    assert (
        "was written with another configuration:\n  optimizer.lr: 0.05 then, 0.5 now\n  seed: 0 then, 1 now\n"
        "use the old values of these keys, or add --accept optimizer.lr seed to resume with the new ones, "
        "or start a new run with another --run-dir"
    ) in str(caught.value)


def test_what_is_accepted_may_change_and_nothing_else(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", Config())
    overrides = ["optimizer.lr=0.5", "optimizer.momentum=0.8", "blocks=2"]
    assert found(run, overrides, "optimizer", "blocks") == ["blocks", "optimizer.lr", "optimizer.momentum"]
    with pytest.raises(ConfigError, match=r"configuration:\n  blocks: 4 then, 2 now\nuse"):
        found(run, overrides, "optimizer")


def test_a_later_checkpoint_of_other_settings_is_not_mixed_with_those_to_come(tmp_path: Path) -> None:
    """A restart would take it for one of this run."""
    run = saved(tmp_path / "run", Config())
    saved(run, Config(), step=7)
    first = str(run / "checkpoints" / "step-00000003")
    with pytest.raises(
        ConfigError, match=r"run has checkpoints up to step 7 .* of step-00000003; .* another --run-dir"
    ):
        found(run, ["blocks=2"], "blocks", resume=first)
    assert found(run, ["log.every_steps=1"], resume=first) == ["log.every_steps"]


def test_a_checkpoint_without_a_configuration_is_no_ground_to_go_on(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run" / "checkpoints", 3)
    with pytest.raises(CheckpointError, match="step-00000003 does not hold the config that it was written with"):
        found(tmp_path / "run", [])
