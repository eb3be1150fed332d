"""The command line, as far as it goes without starting ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bllpipe
from bllpipe import cli, launch
from bllpipe.distributed.torchrun import RankEnvironment, is_lead, launcher_environment, rank_environments
from bllpipe.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "5",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
    "GROUP_RANK": "1",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_MAX_RESTARTS": "5",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


def test_what_torchrun_says() -> None:
    assert RankEnvironment.read(TORCHRUN) == RankEnvironment(3, 5, 1, 2, "host", 29500, True, 3, 1)
    without = {key: value for key, value in TORCHRUN.items() if not key.startswith("TORCHELASTIC")}
    assert RankEnvironment.read(without) == RankEnvironment(3, 5, 1, 2, "host", 29500, False, 0, 1)
    started = {"TORCHELASTIC_RUN_ID": "x", "BLLPIPE_LAUNCHER": "17"}
    assert RankEnvironment.read({**TORCHRUN, **started}) == RankEnvironment(
        3, 5, 1, 2, "host", 29500, True, 3, 1, True, 17, "x"
    )
    without_name = RankEnvironment.read({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none"})
    assert without_name is not None and without_name.job is None, "torchrun's default, which is that of all jobs"


def test_what_our_launcher_adds_is_for_its_ranks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    assert launcher_environment(cpu_threads=3) == {**before, "OMP_NUM_THREADS": "3"}
    assert launcher_environment(cpu_threads=3, variables={"OMP_NUM_THREADS": "2"}) == {"OMP_NUM_THREADS": "2"}
    assert dict(os.environ) == before


def test_ranks_of_our_launcher_are_told_what_torchrun_would_tell_them() -> None:
    ranks = rank_environments(2, port=4321, attempt=1, parent=17)
    for rank, variables in enumerate(ranks):
        found = RankEnvironment.read(variables)
        assert found == RankEnvironment(
            rank, 2, rank, 2, "127.0.0.1", 4321, True, has_agent=True, launcher=17, job="attempt_1"
        )


def test_outside_of_torchrun_there_is_no_rank() -> None:
    assert RankEnvironment.read({}) is None
    assert RankEnvironment.read({"RANK": "0"}) is None


@pytest.mark.parametrize(("name", "value"), [("MASTER_PORT", None), ("LOCAL_RANK", None), ("RANK", "first")])
def test_half_an_environment_is_an_error(name: str, value: str | None) -> None:
    broken = {key: text for key, text in {**TORCHRUN, name: value}.items() if text is not None}
    found = value or name
    with pytest.raises(ConfigError, match=f"{found}.* is missing or no number; use torchrun, or unset RANK"):
        RankEnvironment.read(broken)


@pytest.mark.parametrize(
    ("rank", "world_size", "speaks"),
    [
        ("0", "5", True),
        ("00", "5", True),
        ("1", "5", False),
        ("01", "5", False),
        ("", "", True),
        ("x", "5", True),
        ("5", "5", True),
        ("-1", "5", True),
        ("1", "", True),
    ],
)
def test_one_rank_speaks_for_all(rank: str, world_size: str, speaks: bool) -> None:
    assert is_lead({"RANK": rank, "WORLD_SIZE": world_size}) is speaks
    assert is_lead({})


@pytest.mark.parametrize("rank", ["5", "-1"])
def test_a_rank_outside_of_the_world_is_an_error(rank: str) -> None:
    with pytest.raises(ConfigError, match=f"RANK is {rank} and WORLD_SIZE 5, but ranks are numbered from 0"):
        RankEnvironment.read({**TORCHRUN, "RANK": rank})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "seeed=1"], "unknown key 'seeed'; did you mean 'seed'?"),
        (["--config", "none.yaml"], "none.yaml does not exist; examples are in configs/"),
        (["--set", "blocks=9"], "the network has only 8 units"),
        (["--set", "engine=sequential", "--resume", "none"], "none"),
        (
            ["--resume", "auto", "--accept", "optimizer.learning_rate"],
            "unknown key 'optimizer.learning_rate'; did you mean",
        ),
        (["--resume", "auto", "--accept", "blocks", "optimizr"], "unknown key 'optimizr'; did you mean 'optimizer"),
        (
            ["--accept", "blocks", "--accept", "seed"],
            "--accept blocks seed is for a run that resumes; add --resume auto",
        ),
        (
            ["--set", "engine=sequential", "--max-restarts", "2"],
            "--max-restarts 2 starts ranks again, but engine sequential has one process; leave it out",
        ),
        (
            ["--set", "engine=sequential", "--stop-seconds", "60"],
            "--stop-seconds 60 is when ranks are killed, but engine sequential has one process; leave it out",
        ),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_code(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(words) != 0
    error = capsys.readouterr().err
    assert error.startswith("bllpipe: ") and error.count("bllpipe:") == 1
    assert message in error


def test_a_wrong_world_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for key, value in {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(key, value)
    assert launch.main([]) == 2
    assert "need 5 ranks, but torchrun started 4; use --nproc_per_node=5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "of_torchrun"),
    [(["--max-restarts", "4"], "--max-restarts=4"), (["--stop-seconds", "59.5"], "--shutdown-timeout=60")],
)
def test_what_torchrun_does_is_told_to_torchrun(
    words: list[str], of_torchrun: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in {**TORCHRUN, "RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    assert launch.main(words) == 2
    assert f"torchrun started this rank; use torchrun {of_torchrun} -m bllpipe.launch" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["-1", "0", "x", "inf", "nan", "60s"])
def test_no_number_of_seconds(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        launch.main([f"--stop-seconds={number}"])
    assert f"expected a number of seconds above 0, got '{number}'; use 60, 600, ..." in capsys.readouterr().err


@pytest.mark.parametrize("number", ["-1", "x", "1.5"])
def test_no_number_of_restarts(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        launch.main([f"--max-restarts={number}"])
    assert f"expected a number of restarts, got '{number}'; use 0, 1, 2, ..." in capsys.readouterr().err


@pytest.mark.parametrize("command", [launch.main, lambda words: cli.main(["train", *words])])
def test_help_tells_the_exit_codes(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command(["--help"])
    assert launch.EXIT_CODES.strip() in capsys.readouterr().out


def test_a_fault_of_a_users_module_is_shown_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty_network.py").write_text("def network(in_channels, num_classes):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = "model.name=faulty_network:network"
    assert launch.main(["--set", "engine=sequential", "--set", model, "--run-dir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "this is a fault in bllpipe or in a module of yours" in error
    assert error.count("Traceback") == 1


def test_an_interrupt_has_the_exit_code_of_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "engine", lambda name: interrupted)
    assert launch.main(["--set", "engine=threads"]) == 130


def test_check_refuses_what_cannot_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--set", "data.batch_size=2000"]) == 2
    assert "bllpipe: data.batch_size is 2000, but digits has only 1442" in capsys.readouterr().err


def test_env_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env"]) == 0
    assert json.loads(capsys.readouterr().out)["bllpipe"] == bllpipe.__version__


def test_train_is_launch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "engine=sequential", "--set", "steps=2", "--set", "model.width=4", "--run-dir", str(tmp_path)]
    assert cli.main(["train", *words]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 2
    assert "state_sha256" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["trian"], ["data", "fetch", "imagenet"]])
def test_an_unknown_command_says_which_there_are(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert "usage: bllpipe" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """``bllpipe check | head`` once ended in a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from bllpipe.cli import main; raise SystemExit(main(['check']))"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, cwd=REPOSITORY)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
