"""NaN and Inf stop the run within two steps, wherever they come from; the last good checkpoint stays the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from bllpipe import launch
from tests.support import jobs

SETTINGS = (*jobs.RESNET, "engine=threads", "steps=40", "checkpoint.every_steps=6")


@pytest.mark.parametrize(
    ("point", "step", "found"),
    [
        ("input", 11, "its input has "),
        ("alpha", 11, "alpha has "),
        ("beta", 11, "beta has "),
        ("loss", 11, "the loss term 'kl' is "),
        ("gradient", 12, "model.layer2.0.conv1.weight has "),
        ("weights", 12, "model.layer2.0.conv1.weight has "),
    ],
)
@pytest.mark.parametrize("action", ["nan", "inf"])
def test_a_number_that_is_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    point: str,
    step: int,
    found: str,
    action: str,
) -> None:
    monkeypatch.setenv("BLLPIPE_FAULT", f"rank=1,step=11,point={point},action={action}")
    monkeypatch.setenv("BLLPIPE_ALLOW_FAULTS", "1")
    assert launch.main(jobs.words(tmp_path / "run", *SETTINGS)) == 5
    text = capsys.readouterr().err
    at = f"step {step}" if step == 11 else "checkpoint of step 12"
    assert f"rank 1 (block 1), {at}: {found}" in text
    assert text.count("bllpipe:") == 1
    status = jobs.read_json(tmp_path / "run" / "status.json")
    assert (status["status"], status["step"]) == ("failed", step)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-????????")] == ["step-00000006"]
