"""What is refused before torch is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bllpipe import launch
from bllpipe.config import load_config
from bllpipe.data.catalog import PUBLISHED
from bllpipe.data.registry import digits
from bllpipe.errors import ConfigError, DataError
from bllpipe.launch import check_data, check_installed, check_plan


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["blocks=9"], "blocks=9, but the network has only 8 units to cut between; use --set blocks=8 or less"),
        (["model.name=resnet50", "blocks=[16]"], "cannot cut after 16; expected a number from 1 to 15"),
        (["blocks=[layer2.0, layer1.0]"], "expected cuts in order"),
        (["method=bp", "engine=1f1b", "blocks=9", "pipeline.microbatches=16"], "blocks=9, but the network has only 8"),
        (["method=bp", "engine=gpipe", "blocks=balanced 9"], "blocks=9, but the network has only 8 units"),
        (["data.batch_size=1443"], "data.batch_size is 1443, but digits has only 1442 training images"),
        (["data.name=cifar100", "data.batch_size=50001"], "cifar100 has only 50000 training images"),
        (["data.name=synthetic", "data.synthetic_images=8"], "synthetic has only 8 training images"),
    ],
)
def test_an_impossible_plan(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        check_plan(load_config(None, overrides))


@pytest.mark.parametrize(
    "overrides", [["blocks=8"], ["data.batch_size=1442"], ["model.name=some.module:function", "blocks=99"]]
)
def test_a_plan_that_is_just_possible(overrides: list[str]) -> None:
    check_plan(load_config(None, overrides))


def test_the_size_of_the_digits_is_known() -> None:
    arrays = digits()
    spec = PUBLISHED["digits"]
    assert (spec.num_train, spec.num_test) == (len(arrays.train_N), len(arrays.test_N))
    assert spec.image_shape == tuple(arrays.train_NCHW.shape[1:])


@pytest.mark.parametrize("name", ["npz", "imagefolder"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    config = load_config(None, [f"data.name={name}", f"data.path={tmp_path}/none"])
    with pytest.raises(DataError, match=r"none(/train)? does not exist; expected"):
        check_data(config)


def test_an_archive_is_read_for_its_size_and_its_floats(tmp_path: Path) -> None:
    path, images = tmp_path / "set.npz", np.full((20, 4, 4), 0.5, dtype=np.float32)
    np.savez(path, train_x=images, train_y=np.arange(20) % 2, test_x=images, test_y=np.arange(20) % 2)
    settings = ["data.name=npz", f"data.path={path}"]
    check_data(load_config(None, [*settings, "data.batch_size=20"]))
    with pytest.raises(ConfigError, match="data.batch_size is 21, but npz has only 20"):
        check_data(load_config(None, [*settings, "data.batch_size=21"]))
    images[3] = np.nan
    np.savez(path, train_x=images, train_y=np.arange(20) % 2, test_x=images, test_y=np.arange(20) % 2)
    with pytest.raises(DataError, match="train_x holds 16 values that are NaN or Inf, the first in image 3"):
        check_data(load_config(None, [*settings, "data.batch_size=4"]))


def test_digits_need_no_files() -> None:
    check_data(load_config(None))


@pytest.mark.parametrize("module", ["bllpipe.launch", "bllpipe.cli", "bllpipe.launch"])
def test_it_needs_no_torch(module: str) -> None:
    program = f"import sys, {module}, bllpipe.data.npz; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_a_default_run_imports_nothing_that_it_does_not_use() -> None:
    """Each of these takes tenths of a second, in the launcher and in every rank."""
    unused = {"triton", "torchvision", "torch.utils.flop_counter", "matplotlib", "rich"}
    program = (
        "import sys, bllpipe.launch, bllpipe.engines.ranks, bllpipe.engines.in_process\n"
        f"print(*{unused} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as Python itself marks what cannot be imported
    message = "needs the package deepspeed, which is not installed; use pip install 'bllpipe[deepspeed]'"
    with pytest.raises(ConfigError, match=f"^engine deepspeed {re.escape(message)}$"):
        check_installed(load_config(None, ["method=bp", "engine=deepspeed"]))
    check_installed(load_config(None, ["method=bp", "engine=1f1b"]))
    assert launch.main(["--set", "method=bp", "--set", "engine=deepspeed"]) == 2
    assert message in capsys.readouterr().err
