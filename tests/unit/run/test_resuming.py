"""Where a run lives, and what it may go on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from bllpipe.config import Config, load_config, to_mapping
from bllpipe.errors import ConfigError
from bllpipe.run.checkpoint import CheckpointWriter
from bllpipe.run.resuming import checkpoint_to_resume, choose_directory, default_name, flat
from tests.unit.checkpoint.samples import sample


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
    with pytest.raises(ConfigError, match=r"holds a run already; add --resume auto to go on with it, or name another"):
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
    assert checkpoint_to_resume(Config(), "auto", tmp_path, silent) is None
    run = saved(tmp_path / "run", Config())
    assert checkpoint_to_resume(Config(), "never", run, silent) is None


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
    run = saved(tmp_path / "run", Config())
    found = checkpoint_to_resume(load_config(None, [override]), "auto", run, silent)
    assert found is not None and found.step == 3


def test_every_other_change_is_refused_key_by_key(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", Config())
    with pytest.raises(ConfigError) as caught:
        checkpoint_to_resume(
            load_config(None, ["seed=1", "optimizer.lr=0.5", "log.every_steps=1"]), "auto", run, silent
        )
    assert (
        "was written with another configuration:\n  optimizer.lr: 0.05 then, 0.5 now\n  seed: 0 then, 1 now\n"
        in str(caught.value)
    )
    assert "give these keys their old values, or start a new run with another --run-dir" in str(caught.value)


def test_nested_keys_become_dotted_ones() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}
