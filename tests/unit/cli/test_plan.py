"""``bllpipe plan`` as it is typed."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from bllpipe.cli import main
from bllpipe.config import load_config
from bllpipe.data.registry import data_spec
from bllpipe.engines import topology
from bllpipe.errors import ConfigError
from bllpipe.tools.planning import profiler
from bllpipe.tools.planning.profile import load_profile, save_profile
from tests.support.forks import ForkedPython
from tests.support.spawning import FORKSERVER
from tests.support.waiting import PATIENCE, wait_until

SMALL = ["--set", "model.width=4", "--set", "data.batch_size=16", "--set", "device=cpu"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Measured by the command itself."""
    file = tmp_path_factory.mktemp("plan") / "profile.json"
    assert main(["plan", *SMALL, "--repetitions", "2", "--blocks", "2", "--profile", str(file)]) == 0
    return str(file)


def test_tables_and_files(profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "plan.json"), "--write", str(tmp_path / "cut.yaml")]
    assert main(["plan", *SMALL, "--set", "epochs=7", "--profile", profile, *files]) == 0
    shown = capsys.readouterr().out
    assert "best cut into 4 at 1 GB/s: --set blocks='[layer" in shown
    assert "over a run of 630 steps" in shown
    assert "left out: 16, 32, 64 blocks, as the network has 8 units" in shown
    for devices in (2, 4, 8):
        for engine in ("bll", "ddp", "gpipe, 8 microbatches", r"zero-bubble \(ZB-H1\), 16 microbatches"):
            row = re.search(rf"^{devices} +{engine}((?: +[\d,]+ \(\d+\.\d+x\)){{3}})$", shown, re.MULTILINE)
            assert row, (devices, engine)
    written = load_config(str(tmp_path / "cut.yaml"))
    assert isinstance(written.blocks, list) and written.epochs == 7
    assert f"--set blocks='[{', '.join(map(str, written.blocks))}]'" in shown
    record = json.loads((tmp_path / "plan.json").read_text())
    assert len(record["predictions"]) == 3 * 3 * (2 + 3 * 3)
    best = next(each for each in record["predictions"] if (each["engine"], each["num_blocks"]) == ("bll", 4))
    assert best["cut"] == written.blocks and max(best["busy"]) == pytest.approx(1.0)


def test_the_best_cut_and_replicas_for_a_number_of_ranks(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is written can be trained with as many ranks."""
    file, words = tmp_path / "plan.yaml", ["plan", *SMALL, "--profile", profile]
    files = ["--json", str(tmp_path / "plan.json"), "--write", str(file)]
    assert main([*words, "--ranks", "6", "--blocks", "2", *files]) == 0
    shown = capsys.readouterr().out
    written = load_config(str(file))
    assert written.num_blocks == 2 and written.shards in (1, 2, 4)
    assert 3 <= (ranks := topology(written).world_size) <= 6
    assert f"{ranks} ranks at 1 GB/s: --set blocks='[" in shown
    assert f"--set 'replicas={written.replicas}' --set shards={written.shards}" in shown
    record = json.loads((tmp_path / "plan.json").read_text())["replicas"]
    assert (record["cut"], record["replicas"]) == (written.blocks, written.replicas)


def test_the_replicas_that_auto_stands_for_are_predicted(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", *SMALL, "--profile", profile, "--set", "blocks=2", "--set", "replicas=auto", "--ranks"]
    assert main([*words, "5"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"^5 ranks at 1 GB/s: --set blocks=.* --set 'replicas=\[2, 2\]' --set shards=2$", shown, re.MULTILINE
    )
    assert main([*words, "2"]) == 2
    assert "--ranks is 2, but blocks and feedback need at least 3" in capsys.readouterr().err


@pytest.mark.parametrize("blocks", ["3", "balanced 3"])
def test_replicas_of_the_config_are_predicted(profile: str, blocks: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", f"blocks={blocks}", "--set", "replicas=[4, 2, 1]"]
    assert main(["plan", *SMALL, *words, "--profile", profile]) == 0
    shown = capsys.readouterr().out
    found = re.search(r"^8 ranks at 1 GB/s: .* --set 'replicas=\[4, 2, 1\]' --set shards=4$", shown, re.MULTILINE)
    assert found
    rows = re.findall(r"^block [012] +\S+ - \S+ +(\d) +(\d) +\d+\.\d %$", shown[found.end() :], re.MULTILINE)
    assert rows == [("4", "1"), ("2", "2"), ("1", "4")]


@pytest.mark.ranks
def test_background_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler, "multiprocessing", SimpleNamespace(get_context=lambda how: FORKSERVER))
    file = tmp_path / "profile.json"
    words = ["--repetitions", "2", "--blocks", "2", "--beside", "1", "--profile", str(file)]
    assert main(["plan", *SMALL, *words]) == 0
    assert "times as long as alone, background processes: 1" in capsys.readouterr().out
    assert load_profile(file, load_config(None, SMALL[1::2])).beside == 1
    assert not multiprocessing.active_children()


@pytest.mark.ranks
def test_background_processes_end_when_the_measuring_process_is_killed(tmp_path: Path) -> None:
    words = ["plan", *SMALL, "--repetitions", "100000", "--blocks", "2", "--beside", "1"]
    said = tmp_path / "said"
    said.touch()
    process = ForkedPython(["-m", "bllpipe.cli", *words], os.environ, tmp_path, log=said)

    def is_beside() -> bool:
        assert process.poll() is None, said.read_text()
        return any("repetition" in line and "alone" not in line for line in said.read_text().splitlines())

    wait_until(is_beside)
    children = children_of(process.pid)
    process.kill()
    process.wait(timeout=PATIENCE)
    assert children
    wait_until(lambda: not any(map(is_running, children)))


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_asked_blocks_links_and_microbatches(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--blocks", "3", "5", "--link", "0.5", "--microbatches", "2"]
    assert main(["plan", *SMALL, "--profile", profile, *asked]) == 0
    shown = capsys.readouterr().out
    assert "best cut into 3 at 0.5 GB/s" in shown and "best cut into 5 at 0.5 GB/s" in shown
    assert len(re.findall(r"^[35] .*x\)$", shown, re.MULTILINE)) == 2 * 5
    assert "left out" not in shown


def test_a_network_that_learns_end_to_end_gets_the_cut_of_a_pipeline(profile: str, tmp_path: Path) -> None:
    file = tmp_path / "cut.yaml"
    words = ["--set", "method=bp", "--set", "engine=gpipe", "--profile", profile, "--blocks", "2"]
    assert main(["plan", *SMALL, *words, "--write", str(file)]) == 0
    written = load_config(str(file))
    assert (written.method, written.engine, written.num_parts) == ("bp", "gpipe", 2)


def test_what_is_left_out_is_named(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--blocks", "2", "--microbatches", "8", "32", "--memory", "4"]
    assert main(["plan", *SMALL, "--profile", profile, *words]) == 0
    shown = capsys.readouterr().out
    assert "left out: 32 microbatches, as a batch has 16 images" in shown and ", 32 microbatches " not in shown
    assert "left out: cuts with a block of more than 4 GiB" in shown


def test_one_block_is_written_as_a_number(profile: str, tmp_path: Path) -> None:
    file = tmp_path / "cut.yaml"
    assert main(["plan", *SMALL, "--profile", profile, "--blocks", "1", "--write", str(file)]) == 0
    assert load_config(str(file)).blocks == 1


def test_a_busy_device_is_reported(profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(Path(profile).read_text())
    quiet = tmp_path / "profile.json"
    for spread, warns in ((0.0, False), (1.0, True)):
        for unit in record["units"]:
            for part in ("forward", "backward", "head"):
                unit[part]["upper_quartile"] = unit[part]["lower_quartile"] + spread
        quiet.write_text(json.dumps(record))
        assert main(["plan", *SMALL, "--profile", str(quiet), "--blocks", "2"]) == 0
        assert ("24 of 24 timings spread" in capsys.readouterr().out) is warns


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--blocks", "0"], "--blocks is 0; expected at least 1"),
        (["--blocks", "9"], "9 blocks, but the network has only 8 units to cut between; use --blocks 8 or less"),
        (["--microbatches", "4", "0"], "--microbatches is 4 0; expected at least 1"),
        (["--repetitions", "1"], "--repetitions is 1; expected at least 2"),
        (["--link", "0"], "--link is 0; expected a number above 0"),
        (["--link", "nan"], "--link is nan; expected a number above 0"),
        (["--memory", "-1"], "--memory is -1; expected a number above 0"),
        (["--memory", "1e-7"], "no larger number of blocks fits either"),
        (["--blocks", "2", "4", "--write", "x.yaml"], "--write writes one cut, but --blocks are [2, 4]; name one"),
        (["--blocks", "2", "4", "--ranks", "9"], "--ranks finds one cut, but --blocks are [2, 4]; name one"),
        (["--ranks", "1"], "--ranks is 1; expected at least 2"),
        (
            ["--ranks", "4", "--blocks", "4"],
            "--ranks 4, but 4 blocks and the feedback need at least 5; use --ranks 5 or more",
        ),
        (["--ranks", "4", "--memory", "1e-7"], "no larger number of blocks fits either"),
        (
            ["--ranks", "4", "--set", "method=bp", "--set", "engine=gpipe"],
            "--ranks is 4, but method bp learns end to end, without replicas of blocks; leave --ranks out, or use "
            "--set method=bll",
        ),
        (["--json", "."], ". is a directory; expected the name of a file, such as ./FILE"),
        (
            ["--json", "none/x.json"],
            "none/x.json cannot be written: there is no directory none; make it",
        ),
    ],
)
def test_mistakes(profile: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *SMALL, "--profile", profile, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_warm_up_longer_than_the_run(profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plan once predicted runs that train, check and slurm refuse. Without a profile nothing is measured first."""
    keys = ["--set", "schedule.name=cosine", "--set", "schedule.warmup_steps=181", "--set", "epochs=2"]
    for file in (profile, str(tmp_path / "new.json")):
        assert main(["plan", *SMALL, *keys, "--profile", file]) == 2
        assert "schedule.warmup_steps is 181, but the run has only 180 steps" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()


def test_a_memory_limit_says_what_would_do(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What one block needs of memory is too much for a limit that four keep to; what it says can be typed."""
    words = ["plan", *SMALL, "--profile", profile]
    config = load_config(None, SMALL[1::2])
    most = max(unit.memory_bytes + unit.head_memory_bytes for unit in load_profile(Path(profile), config).units)
    tight = f"{1.3 * most / 2**30:.9f}"
    assert main([*words, "--blocks", "1", "--memory", tight]) == 2
    advice = re.search(
        r"the largest of 1 blocks needs .* use --memory (\S+), or --blocks (\d)$", capsys.readouterr().err
    )
    assert advice
    assert main([*words, "--blocks", "1", "--memory", advice[1]]) == 0
    assert main([*words, "--blocks", advice[2], "--memory", tight]) == 0


def test_a_last_block_without_parameters(profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(None, SMALL[1::2])
    file = tmp_path / "profile.json"
    save_profile(load_profile(Path(profile), config), file)
    record = json.loads(file.read_text())
    record["units"][-1]["parameters"] = 0
    file.write_text(json.dumps(record))
    assert main(["plan", *SMALL, "--profile", str(file), "--blocks", "8"]) == 2
    assert "8 blocks would leave one without parameters; use --blocks 7" in capsys.readouterr().err


def test_background_processes_that_do_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "TIMEOUT", 0.01)
    config = load_config(None, SMALL[1::2])
    with (
        pytest.raises(ConfigError, match="--beside 1: not all of these processes began to compute within 0.01 s"),
        profiler.background_load(config, data_spec(config), 1),
    ):
        pass
