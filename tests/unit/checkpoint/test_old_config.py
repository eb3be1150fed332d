"""A run that a version before ``channels_last`` had a key of its own has left goes on, is tested and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bllpipe import cli, launch
from bllpipe.config import load_config
from tests.support import jobs
from tests.support.checkpoint_samples import edit_json, reseal
from tests.unit.config.test_stored import old_form

UNSCALED = "objective.head_scale=false"  # what the heads of that version were
SHORT = (*jobs.RESNET, "engine=sequential", "steps=8", UNSCALED)
# Keys that came later, which no file of that version has.
LATER = {
    "objective": (
        *("head_width", "head_reduce", "head_scale", "head_lr", "head_units", "message", "contrast_weight"),
        *("kl_scale", "kl_block_factor", "kl_final_fraction"),
    )
}


def made_old(run: Path) -> None:
    """Rewrites ``config.yaml`` and what the checkpoint says of its config as the old version had them."""
    stored = old_form(load_config(str(run / "config.yaml")))
    for section, names in LATER.items():
        stored[section] = {name: value for name, value in stored[section].items() if name not in names}
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    world_size = json.loads((checkpoint / "manifest.json").read_text())["world_size"]
    for rank in range(world_size):
        edit_json(checkpoint / f"rank-{rank}.json", config=stored)
    reseal(checkpoint, world_size)
    assert "channels_last: true" in (run / "config.yaml").read_text()


def test_it_goes_on_is_tested_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straight = jobs.in_this_process(tmp_path / "straight", *SHORT)
    run = tmp_path / "run"
    jobs.in_this_process(run, *SHORT, "stop_at=5")
    made_old(run)
    assert cli.main(["eval", str(run)]) == 0
    assert cli.main(["export", str(run), str(tmp_path / "model.safetensors")]) == 0
    assert cli.main(["report", str(run)]) == 0
    capsys.readouterr()
    assert launch.main(jobs.words(run, *SHORT[:-1], options=("--resume", "auto"))) == 2
    assert 'objective.head_scale: false then, "auto" now' in capsys.readouterr().err
    resumed = jobs.in_this_process(run, *SHORT, options=("--resume", "auto"))
    assert resumed["state_sha256"] == straight["state_sha256"]
    assert "accepted" not in capsys.readouterr().err
