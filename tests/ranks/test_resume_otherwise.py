"""A run goes on in another way than it began: another cut, another engine, another number of ranks, another method,
other settings; on purpose, and with everything named that does not come along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bllpipe import launch
from bllpipe.checkpoint import open_checkpoint
from tests.support import jobs

# A test that waits for ever is a test that fails soon.
SHORT = (
    *jobs.RESNET,
    *("data.name=synthetic", "data.synthetic_images=128", "data.image_size=8", "schedule.name=constant"),
    *("backend.timeout_seconds=20", "steps=9", "log.every_steps=1"),
)
LOCAL = (*SHORT, "engine=sequential")
WHOLE = (*SHORT, "method=bp", "engine=single")


def begin(run_dir: Path, *settings: str, stop_at: int = 4) -> None:
    jobs.in_this_process(run_dir, *settings, f"stop_at={stop_at}")


def go_on(run_dir: Path, *settings: str, accept: str = "", resume: str = "auto") -> dict[str, Any]:
    return jobs.in_this_process(run_dir, *settings, options=going_on(accept, resume))


def going_on(accept: str = "", resume: str = "auto") -> tuple[str, ...]:
    return ("--resume", resume, *(("--accept", *accept.split()) if accept else ()))


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    return open_checkpoint(run_dir).tensors()


@pytest.mark.parametrize("lag", [1, 3])
@pytest.mark.parametrize(
    ("blocks", "new_heads"), [("2", ""), ("8", "layer1.0"), ("[layer1.0, layer3.0]", "layer1.0"), ("1", "")]
)
def test_another_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str], lag: int, blocks: str, new_heads: str) -> None:
    """New lanes once waited for statistics of steps that their blocks never ran, and the blocks for the lanes."""
    begin(tmp_path / "run", *LOCAL, f"feedback.lag={lag}")
    before = tensors(tmp_path / "run")
    summary = go_on(tmp_path / "run", *LOCAL, f"feedback.lag={lag}", f"blocks={blocks}", accept="blocks")
    assert summary["steps"] == 9 and jobs.read_json(tmp_path / "run" / "status.json")["status"] == "completed"
    assert {name for name in before if name.startswith("model.")} <= tensors(tmp_path / "run").keys()
    text = capsys.readouterr().err
    assert "resumes after step 4 with other settings, as accepted:\n  blocks: 4 then, " in text
    assert ("holds nothing that fits: heads." + new_heads in text) is bool(new_heads)


def test_the_same_cut_after_another_one_goes_on_with_the_weights_of_the_network(tmp_path: Path) -> None:
    begin(tmp_path / "run", *LOCAL)
    before = tensors(tmp_path / "run")
    go_on(tmp_path / "run", *LOCAL, "blocks=2", "optimizer.lr=0", accept="blocks optimizer.lr")
    after = tensors(tmp_path / "run")
    trained = [name for name, value in before.items() if name.startswith("model.") and value.dim() > 1]
    assert len(trained) > 10 and all(torch.equal(before[name], after[name]) for name in trained)


def test_what_starts_fresh_and_what_nobody_takes_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path / "run", *LOCAL)
    go_on(tmp_path / "run", *LOCAL, "blocks=[layer1.1, layer2.0]", accept="blocks")
    lines = capsys.readouterr().err.splitlines()
    place = "step-00000004"
    fresh = f"starts fresh, as {place} holds nothing that fits:"
    new_head = "heads.layer2.0 (2), optimizer.heads.layer2.0 (2)"
    assert f"bllpipe: rank 1 (block 1): {fresh} {new_head}" in lines
    assert f"bllpipe: rank 3 (feedback): {fresh} feedback.layer2.0 (2)" in lines
    (left,) = [line for line in lines if "no rank restores" in line]
    assert left.startswith(
        f"bllpipe: no rank restores from {place}: ahead.layer2.1 (2), ahead.layer3.1 (2), feedback.layer2.1"
    )
    assert sum("starts fresh" in line for line in lines) == 2, "blocks 0 and 2 take all they need"


@pytest.mark.parametrize("engine", ["threads", "sequential"])
def test_the_same_cut_in_another_engine_is_the_same_run_and_needs_no_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    straight = jobs.in_this_process(tmp_path / "straight", *SHORT, "engine=threads")
    begin(tmp_path / "run", *SHORT, "engine=threads")
    capsys.readouterr()
    assert go_on(tmp_path / "run", *SHORT, f"engine={engine}")["state_sha256"] == straight["state_sha256"]
    assert capsys.readouterr().err == ""


def test_a_network_that_blocks_have_trained_goes_on_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "bll", *LOCAL)
    place = str(tmp_path / "bll" / "checkpoints" / "step-00000004")
    summary = go_on(tmp_path / "bp", *WHOLE, "optimizer.lr=0", accept="method engine optimizer", resume=place)
    assert (summary["method"], summary["steps"], summary["world_size"]) == ("bp", 9, 1)
    then, now = tensors(tmp_path / "bll"), tensors(tmp_path / "bp")
    assert all(
        torch.equal(then[name], now[name]) for name in now if name.endswith("conv1.weight") and "optim" not in name
    )
    assert "no rank restores from step-00000004: ahead." in capsys.readouterr().err
    assert jobs.read_json(tmp_path / "bll" / "status.json")["status"] == "preempted", (
        "where it comes from stays as it is"
    )


def test_a_complete_run_can_be_made_longer_as_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.in_this_process(tmp_path / "run", *LOCAL)
    go_on(tmp_path / "run", *LOCAL)
    told = capsys.readouterr().out
    assert "is complete: step 9 of 9; for another run leave out --resume; to train longer, raise steps and add " in told
    words = told.rpartition(" and add ")[2].split()
    assert words == ["--accept", "steps"]
    longer = jobs.in_this_process(tmp_path / "run", *LOCAL, "steps=12", options=("--resume", "auto", *words))
    assert longer["steps"] == 12
    assert jobs.read_json(tmp_path / "run" / "status.json")["status"] == "completed"
    steps = [line["step"] for line in jobs.metrics(tmp_path / "run") if line["phase"] == "train"]
    assert sorted(set(steps)) == list(range(1, 13)) and len(steps) == 12 * 8


def test_a_run_that_was_stopped_says_how_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path / "run", *LOCAL)
    begin_again = jobs.words(tmp_path / "run", *LOCAL, "stop_at=4", options=going_on())
    assert launch.main(begin_again) == 0
    assert (
        "is complete: step 4 of 4; for another run leave out --resume; to train on, raise stop_at"
        in capsys.readouterr().out
    )
    assert jobs.read_json(tmp_path / "run" / "status.json")["status"] == "preempted", (
        "once it said running from then on"
    )


@pytest.mark.parametrize(
    ("settings", "accept"),
    [
        (("optimizer.name=adamw",), "optimizer"),
        (("objective.head=mlp",), "objective.head"),
        (("feedback.update=sgd",), "feedback"),
    ],
)
def test_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: tuple[str, ...], accept: str
) -> None:
    begin(tmp_path / "run", *LOCAL)
    assert go_on(tmp_path / "run", *LOCAL, *settings, accept=accept)["steps"] == 9
    assert "starts fresh, as step-00000004 holds nothing that fits" in capsys.readouterr().err
    (record,) = map(json.loads, (tmp_path / "run" / "resumes.jsonl").read_text().splitlines())
    key, _, value = settings[0].partition("=")
    assert record["changes"][key][1] == json.dumps(value) and (record["checkpoint"], record["step"]) == (
        "step-00000004",
        4,
    )


def test_another_network_is_refused_even_if_it_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path / "run", *LOCAL)
    words = jobs.words(tmp_path / "run", *LOCAL, "model.width=8", options=going_on("model"))
    assert launch.main(words) == 4
    assert "step-00000004 holds model.bn1.bias as float32[4], but this run needs float32[8]" in capsys.readouterr().err


def test_a_run_without_a_summary_tells_its_results_when_it_goes_on(tmp_path: Path) -> None:
    """Killed after its last checkpoint a run once had neither a summary nor anything left to do."""
    straight = jobs.in_this_process(tmp_path / "run", *LOCAL)
    lines = jobs.metrics(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    again = go_on(tmp_path / "run", *LOCAL)
    assert all(again[key] == straight[key] for key in ("state_sha256", "test_accuracy", "block_accuracy", "steps"))
    kept = [
        (line["phase"], line["step"], line["actor"], line.get("accuracy")) for line in jobs.metrics(tmp_path / "run")
    ]
    assert sorted(map(str, kept)) == sorted(
        str((line["phase"], line["step"], line["actor"], line.get("accuracy"))) for line in lines
    )


@pytest.mark.ranks
@pytest.mark.parametrize("lag", [1, 3])
def test_another_cut_on_another_number_of_ranks_gives_the_same_bits_in_every_engine(tmp_path: Path, lag: int) -> None:
    begin(tmp_path / "here", *LOCAL, f"feedback.lag={lag}", "blocks=3")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    settings = (*SHORT, f"feedback.lag={lag}", "blocks=[layer1.0]")
    here = go_on(tmp_path / "here", *settings, "engine=sequential", accept="blocks")
    words = jobs.words(tmp_path / "there", *settings, "engine=ranks", options=going_on("blocks"))
    done = jobs.succeed(jobs.ranks(3, words))
    there = jobs.summary(tmp_path / "there")
    assert there["world_size"] == 3 and there["state_sha256"] == here["state_sha256"]
    fresh = "starts fresh, as step-00000004 holds nothing that fits: "
    assert f"bllpipe: rank 0 (block 0): {fresh}heads.layer1.0 (2), optimizer.heads.layer1.0 (2)\n" in done.stderr
    assert f"bllpipe: rank 2 (feedback): {fresh}feedback.layer1.0 (2)\n" in done.stderr
    assert done.stderr.count("no rank restores from step-00000004: ") == 1


@pytest.mark.ranks
def test_a_whole_network_goes_on_in_stages_in_replicas_and_whole_again(tmp_path: Path) -> None:
    """Nothing starts fresh and nothing is left over. Without batch norms a batch may be split in any way, so the
    weights are the same but for the order of sums."""
    settings = (*(word for word in SHORT if "model" not in word), "method=bp", "blocks=2", "pipeline.microbatches=2")
    plain = (*settings, "model.name=tests.support.networks.engines:plain")
    jobs.in_this_process(tmp_path / "straight", *plain, "engine=single")
    begin(tmp_path / "run", *plain, "engine=single", stop_at=3)
    said = ""
    for engine, stop_at in (("1f1b", 5), ("ddp", 7)):
        words = jobs.words(
            tmp_path / "run", *plain, f"engine={engine}", f"stop_at={stop_at}", options=going_on("engine")
        )
        said += jobs.succeed(jobs.ranks(2, words)).stderr
    assert go_on(tmp_path / "run", *plain, "engine=single", accept="engine")["steps"] == 9
    assert said.count("with other settings, as accepted:\n  engine: ") == 2
    assert "fresh" not in said and "no rank restores" not in said
    straight, found = tensors(tmp_path / "straight"), tensors(tmp_path / "run")
    assert straight.keys() == found.keys() and any(name.endswith("momentum_buffer") for name in found)
    for name, value in straight.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
