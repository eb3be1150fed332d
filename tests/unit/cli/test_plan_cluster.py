"""``bllpipe plan --cluster`` as it is typed, with the profile that a benchmark has measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from bllpipe.cli import main
from tests.support.clusters import LEAST

MEASURED = Path(__file__).parents[3] / "benchmarks" / "results" / "plan-cpu.json"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a plan for the network of that benchmark."""
    folder = tmp_path_factory.mktemp("cluster")
    profile = json.loads(MEASURED.read_text())["profile"]
    (folder / "profile.json").write_text(json.dumps(profile))
    (folder / "cluster.yaml").write_text(
        LEAST + "batch_per_gpu: 16\njitter: 0.1\nsteps: 12\nprice_per_gpu_hour: 2\nfailures: {node_mtbf_hours: 100}\n"
    )
    settings = [f"{key}={json.dumps(value)}" for key, value in profile["settings"].items() if value != {}]
    words = ["--profile", str(folder / "profile.json"), "--cluster", str(folder / "cluster.yaml")]
    return ["plan", *words, *(word for setting in settings for word in ("--set", setting))]


def test_the_table_the_record_and_the_picture(
    plan: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "found.json"), "--picture", str(tmp_path / "curves.svg")]
    assert main([*plan, "--blocks", "2", *files]) == 0
    shown = capsys.readouterr().out
    for number in (4, 16):
        for engine in ("bll", "1f1b", r"zero-bubble \(ZB-H1\)", "ddp"):
            assert re.search(rf"^{number} +{engine} .*\d %.*\d %", shown, re.MULTILINE), (number, engine)
    assert "predicted, not measured" in shown
    record = json.loads((tmp_path / "found.json").read_text())
    assert [each["num_gpus"] for each in record["predictions"]] == [4] * 4 + [16] * 4
    bll = next(each for each in record["predictions"] if each["engine"] == "bll")
    assert len(bll["replicas"]) == 2 and sum(bll["replicas"]) == 4 and len(bll["cut"]) == 1
    assert record["cluster"]["jitter"] == 0.1
    picture = (tmp_path / "curves.svg").read_text()
    assert picture.startswith("<svg") and "zero-bubble (ZB-H1), predicted" in picture and "price of an epoch" in picture


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "5"], "expected no --ranks with --cluster, got 5; use the keys of FILE"),
        (["--memory", "5"], r"expected no --memory with --cluster, got 5\.0; use the keys"),
        (
            ["--set", "method=bp", "--set", "engine=single"],
            "a method with local losses for --cluster, got bp; use --set",
        ),
        (["--cluster", "none.yaml"], "none.yaml does not exist"),
        (["--blocks", "9"], "expected a layout that divides the GPUs of .*, got none; use other numbers of gpus"),
    ],
)
def test_what_is_impossible_is_refused(
    plan: list[str], options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--blocks" in options:  # GPUs of little memory
        small = tmp_path / "small.yaml"
        small.write_text(LEAST.replace("[4, 16]", "[3]") + "device: {memory_gib: 0.001}\n")
        options = [*options, "--cluster", str(small)]
    assert main([*plan, *options]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_picture_needs_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--picture", str(tmp_path / "curves.svg")]) == 2
    assert "expected --cluster FILE with --picture, got none; use both, or leave" in capsys.readouterr().err


def test_a_picture_needs_matplotlib(
    plan: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*plan, "--picture", str(tmp_path / "curves.svg")]) == 2
    assert re.search(r"--picture needs matplotlib: .*; use pip install 'bllpipe\[report\]'", capsys.readouterr().err)
