"""``bllpipe check``: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bllpipe import cli
from bllpipe.config import load_config, to_mapping
from bllpipe.tools.monitoring import tracking

NOWHERE = ("--set", "data.name=npz", "--set", "data.path=/nowhere/own.npz")


def test_the_table_has_a_row_a_rank_and_a_row_an_edge(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--set", "blocks=2", "--set", "model.width=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["bll/ranks: resnet18 on digits, batches of 64, 3 ranks", "440 steps, 22 an epoch"]
    assert [line.split()[:2] for line in lines[4:7]] == [["0", "block"], ["1", "block"], ["2", "feedback"]]
    assert "alpha 0->1 float32[64, 8, 4, 4] 33.1 kB 33.1 kB" in [" ".join(line.split()) for line in lines]
    assert "Memory is an estimate: counted, not measured" in lines[-2]


def test_replicas_for_a_number_of_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "blocks=2", "--set", "model.width=4", "--set", "replicas=auto"]
    assert cli.main(["check", "--config-only", *words, "--ranks", "5"]) == 0
    out = capsys.readouterr().out
    assert "replicas:\n- 2\n- 2\nshards: 2\n" in out
    assert "2 block 1 replica 0, 3 block 1 replica 1, 4 feedback" in out
    assert cli.main(["check", "--config-only", *words, "--ranks", "2"]) == 2
    assert "--ranks is 2, but blocks and feedback need at least 3" in capsys.readouterr().err
    nowhere = ("--set", "data.name=npz", "--set", "data.path=/nowhere/own.npz")
    assert cli.main(["check", "--config-only", *words, *nowhere, "--ranks", "5"]) == 0
    assert "replicas: auto\n" in capsys.readouterr().out, "operations depend on the data"


def test_hundreds_of_ranks_are_summarised(capsys: pytest.CaptureFixture[str]) -> None:
    """Replicas of a block in one row, edges of one kind and size in another; all of them with --verbose, and JSON."""
    texts = ("blocks=2", "model.width=4", "data.batch_size=320", "replicas=[160, 80]")
    words = [word for text in texts for word in ("--set", text)]
    assert cli.main(["check", *words]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    rows = ("0 block 0, 160 replicas", "160 block 1, 80 replicas", "240 feedback 0", "241 feedback 1")
    assert all(line.startswith(row) for line, row in zip(lines[4:8], rows, strict=True))
    assert any(line.startswith("alpha 0->160 and 159 like it float32[2, 8, 4, 4] 1.3 kB") for line in lines)
    assert any(line.startswith("gradient 0->1 and 25439 like it") for line in lines)
    assert sum("block 0" in line for line in lines) == 2, "a row of ranks, and one of heads"
    assert len(lines) < 32
    assert cli.main(["check", "--config-only", *words]) == 0
    *_, ranks, edges = capsys.readouterr().out.splitlines()
    assert ranks == (
        "# ranks: 0 block 0 replica 0 and 159 like it, 160 block 1 replica 0 and 79 like it, 240 feedback 0, "
        "241 feedback 1"
    )
    found = ("alpha 0->160 and 159", "target 240->0 and 239", "stats 0->240 and 239")
    assert edges == f"# edges: {', '.join(f'{each} like it' for each in found)}"


def test_all_of_many_ranks_with_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "blocks=2", "--set", "model.width=4", "--set", "replicas=16"]
    assert cli.main(["check", "--verbose", *words]) == 0
    out = capsys.readouterr().out
    assert "like it" not in out and "block 1 replica 15" in out and "gradient 31->30" in out
    assert out.splitlines()[-1].endswith("stats 30->32, stats 31->32")


def test_messages_of_microbatches_are_counted_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for text in ("method=bp", "engine=1f1b", "blocks=2", "model.width=4") for word in ("--set", text)]
    assert cli.main(["check", *words, "--set", "precision.compute=bf16"]) == 0
    out = capsys.readouterr().out
    assert "gradient 1->0 float32[16, 8, 4, 4] 4 x 8.2 kB 32.8 kB" in " ".join(out.split())
    assert out.endswith("precision.compute bf16 stores some of them in half the bytes.\n")


def test_what_tests_send_more_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = "With evaluate.ensemble an alpha message of a test batch has 2.6 kB more: "
    for overrides in ([], ["--set", "evaluate.ensemble=true"]):
        assert cli.main(["check", "--set", "blocks=2", "--set", "model.width=4", *overrides]) == 0
        assert (words in capsys.readouterr().out) is bool(overrides)


@pytest.mark.parametrize("option", ["--config-only", "--verbose"])
def test_the_config_can_be_read_again(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", option, "--set", "blocks=2", "--set", "seed=4", "--set", "model.width=4"]) == 0
    out = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(out[out.index("name: null") :])
    assert load_config(str(tmp_path / "again.yaml")) == load_config(None, ["blocks=2", "seed=4", "model.width=4"])
    assert "# ranks: 0 block 0, 1 block 1, 2 feedback\n" in out
    assert "# edges: alpha 0->1, target 2->0, target 2->1, stats 0->2, stats 1->2\n" in out
    assert out.startswith("name: null") == (option == "--config-only")


def test_json_is_one_object_with_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--json", "--set", "blocks=2", "--set", "model.width=4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == to_mapping(load_config(None, ["blocks=2", "model.width=4"]))
    assert (found["unknown"], found["steps"], found["steps_per_epoch"]) == (None, 440, 22)
    assert found["edges"][0] == {
        "kind": "alpha",
        "src": 0,
        "dst": 1,
        "tensors": [{"dtype": "float32", "shape": [64, 8, 4, 4]}],
        "message_bytes": 33088,
        "num_messages": 1,
        "step_bytes": 33088,
        "ensemble_bytes": 0,
    }
    assert sum(rank["sent_bytes"] for rank in found["ranks"]) == sum(edge["step_bytes"] for edge in found["edges"])
    memory = found["ranks"][0]["memory"]
    assert memory.pop("total") == sum(memory.values())


def test_without_the_data_ranks_and_edges_are_shown_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *NOWHERE]) == 0
    out = capsys.readouterr().out
    assert "# ranks: 0 block 0, " in out and "depend on the data, which were not found: data.name is npz" in out
    assert cli.main(["check", "--json", *NOWHERE]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranks"][4] == {"rank": 4, "role": "feedback"} and "data.path=PATH" in found["unknown"]
    assert found["edges"][0] == {"kind": "alpha", "src": 0, "dst": 1}


def test_a_tracker_that_is_missing_here_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without data it is no error: the run may start on another machine."""
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    assert cli.main(["check", "--set", "log.to=[mlflow]"]) == 0
    assert "log.to names mlflow, but the package mlflow is not installed; use pip" in capsys.readouterr().err


def test_a_network_that_cannot_be_counted_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--set", "model.name=tests.support.networks.dry_run:choosy", "--set", "blocks=2"]) == 0
    assert "the network depends on values or devices, so it cannot be counted" in capsys.readouterr().out


def test_a_network_without_enough_units_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--set", "blocks=9"]) == 2
    assert "bllpipe: blocks=9, but the network has only 8 units" in capsys.readouterr().err


def test_a_warm_up_that_takes_longer_than_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The digits make 22 steps an epoch."""
    words = ["schedule.name=cosine", "schedule.warmup_steps=500", "epochs=2"]
    assert cli.main(["check", *(word for setting in words for word in ("--set", setting))]) == 2
    assert "schedule.warmup_steps is 500, but the run has only 44 steps" in capsys.readouterr().err
