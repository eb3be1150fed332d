"""Trials are run once, go on after an interruption, and end in a table beside the paper's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import experiments, processes, table
from benchmarks.processes import Processes
from benchmarks.records import Sample, append, differences, merge, read
from benchmarks.table_settings import METHODS, table_trials
from benchmarks.table_show import show
from benchmarks.trials import Trial, resolved, run_trials
from bllpipe.errors import ConfigError
from tests.support import forks, jobs
from tests.support.waiting import wait_until

DIGITS = jobs.REPOSITORY / "configs" / "digits.yaml"
TINY = {"engine": "sequential", "model.width": 4, "data.batch_size": 32, "steps": 12}


def tiny(key: str, seed: int = 0, **overrides: Any) -> Trial:
    return Trial(key, DIGITS, {**TINY, **overrides}, seed, {"size": "tiny"})


def record(method: str, seed: int, accuracy: float, data: str = "cifar10", **others: Any) -> dict[str, Any]:
    """As a trial leaves it, with the accuracy in %."""
    return {
        "key": f"small-{data}-{method}-s{seed}",
        "size": "small",
        "method": method,
        "data": data,
        "seed": seed,
        "test_accuracy": accuracy / 100,
        "block_accuracy": [0.5, accuracy / 100],
        "epochs": 6.0,
        "seconds": 10.0,
        "resumed": False,
        "workers": 2,
        "environment": {"gpus": [], "cpus": 2, "processor": "EPYC", "torch": "2.15.0"},
        "finished": f"2030-01-0{seed + 1}T00:00:00+00:00",
        "config": {"method": method, "seed": seed, "epochs": 6, "engine": "sequential"},
        **others,
    }


BP = [record("bp", seed, accuracy) for seed, accuracy in enumerate((75.0, 76.0, 77.0))]
BLL = [record("bll", seed, accuracy) for seed, accuracy in enumerate((74.0, 76.5, 77.0))]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_a_sample_is_mean_deviation_and_error() -> None:
    sample = Sample.of([1.0, 2.0, 6.0])
    assert (sample.n, sample.mean) == (3, 3.0)
    assert [sample.std, sample.error] == pytest.approx([7**0.5, (7 / 3) ** 0.5])
    assert (str(sample), str(Sample.of([71.234]))) == ("3.00 ± 2.65", "71.23")
    assert Sample.of([2.0]).error is None


def test_the_table_has_the_papers_figures_and_ours() -> None:
    lines = rows(show([*BP, *BLL, record("usf", 0, 55.0)], markdown=True))
    assert lines[0] == ["method", "CIFAR-10: paper", "ours", "epochs", "n", "hardware"]
    assert lines[2] == ["BP", "94.8 ± 0.25", "76.00 ± 1.00", "6", "3", "a"]
    assert lines[3] == ["FA", "62.5 ± 0.40", "-", "-", "-", "-"]
    assert lines[4] == ["Pred-Sim", "92.1 ± 0.20", "-", "-", "-", "-"]
    assert lines[5] == ["DGL", "-", "-", "-", "-", "-"]
    assert lines[6] == ["BLL", "94.6 ± 0.17", "75.83 ± 1.61", "6", "3", "a"]
    assert lines[7] == ["USF", "-", "55.00", "6", "1", "a"]


def test_differences_are_of_means_and_of_pairs() -> None:
    text = show([*BP, *BLL], markdown=True)
    # errors: sqrt(1/3 + 2.5833/3), and that of (-1, 0.5, 0), which is sqrt(0.58333/3)
    expected = ["BLL - BP", "CIFAR-10", "-0.2", "-0.17", "1.09", "-0.17", "0.44", "-1.00 +0.50 +0.00"]
    assert rows(text)[-1] == expected
    assert "a: 2 CPUs of EPYC, torch 2.15.0, 2 run(s) at a time" in text


def test_difference_without_a_common_seed_or_a_second_run() -> None:
    text = show([record("dgl", 4, 70.0), record("bll", 5, 71.0)], markdown=True)
    assert rows(text)[-1] == ["BLL - DGL", "CIFAR-10", "-", "+1.00", "-", "-", "-", "-"]
    assert "no differences: they need BLL" in show(BP)


def test_data_sets_stand_in_the_papers_order() -> None:
    text = show([record("bp", 0, 70.0, "cifar100"), record("bp", 0, 90.0, "fashion_mnist")])
    assert text.index("Fashion-MNIST: paper") < text.index("CIFAR-100: paper")
    for figure in ("93.4 ± 0.60", "86.6 ± 0.70", "94.2 ± 0.20", "94.1 ± 0.24", "77.8 ± 0.21", "71.7 ± 0.76"):
        assert figure in text


def test_of_two_equal_keys_the_later_counts() -> None:
    early, late = record("bp", 0, 70.0), record("bp", 0, 71.0, finished="2031-01-01T00:00:00+00:00")
    for order in ([early, late], [late, early]):
        assert merge(order) == ([late], [])


def test_equal_keys_with_other_settings_are_told() -> None:
    late = record("bp", 0, 71.0, finished="2031-01-01T00:00:00+00:00", config={**BP[0]["config"], "epochs": 8})
    merged, notes = merge([late, BP[0]])
    assert merged == [late]
    assert notes == [f"{late['key']} is there twice with different settings, the later one is shown: {EPOCHS}"]


EPOCHS = "epochs: 6 then, 8 now"


def test_other_settings_are_not_averaged() -> None:
    late = record("bp", 3, 90.0, config={**BP[0]["config"], "seed": 3, "epochs": 8}, epochs=8.0)
    text = show([*BP, late], markdown=True)
    assert rows(text)[2] == ["BP", "94.8 ± 0.25", "90.00", "8", "1", "a"]
    assert f"small-cifar10-bp-s0 is left out of small cifar10 bp, other settings: {EPOCHS}" in text


def test_settings_that_change_nothing_do_not_differ() -> None:
    then = {"engine": "ranks", "data.path": "a", "log.every_steps": 1, "epochs": 6}
    assert differences(then, {"engine": "sequential", "data.path": "b", "epochs": 6, "new.key": 1}) == ""
    assert differences(then, {**then, "model.args.depth": 3}) == "model.args.depth: None then, 3 now"


def test_pieces_of_several_files_are_shown_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, records in zip(files, (BP, BLL), strict=True):
        for one in records:
            append(file, one)
    assert table.main(["show", *map(str, files)]) == 0
    text = capsys.readouterr().out
    assert "76.00 ± 1.00" in text and "75.83 ± 1.61" in text
    assert table.main(["show", str(tmp_path / "c.jsonl")]) == 2
    assert "c.jsonl does not exist; expected a file" in capsys.readouterr().err


UNFINISHED = '{"key": "a", "config": {}, "finished": "2030-01-01"}'  # without seed and accuracies
NO_CONFIG = json.dumps({**BP[0], "config": []})
UNTESTED = json.dumps({**BP[0], "test_accuracy": None})


@pytest.mark.parametrize("line", ['{"key": "a", "con', '{"key": "a"}', "3", "\udcff", UNFINISHED, NO_CONFIG, UNTESTED])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    append(tmp_path / "a.jsonl", BP[0])
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(line.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"a.jsonl, line 2: .* is no finished trial; delete the line"):
        read(tmp_path / "a.jsonl")


def test_a_directory_is_no_file_of_results(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory; expected a file that a run with --out FILE has written"):
        read(tmp_path)


def test_a_line_after_one_without_its_end_is_a_line_of_its_own(tmp_path: Path) -> None:
    """It was glued to the one before, and both were lost."""
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(BP[0]))
    append(file, BP[1])
    append(file, BP[2])
    assert read(file) == BP and file.read_text().count("\n") == 3


def test_the_table_asks_for_every_combination() -> None:
    trials = table_trials("small", None, ["bp", "bll"], [0, 1], "there.npz", engine="ranks")
    keys = [trial.key for trial in trials]
    assert keys == [f"small-cifar10-{method}-s{seed}" for seed in (0, 1) for method in ("bp", "bll")]
    assert trials[0].overrides["engine"] == "single" and trials[1].overrides["engine"] == "ranks"
    assert 'data.path="there.npz"' in trials[3].settings() and "seed=1" in trials[3].settings()
    paper = table_trials("paper", None, ["bll"], [0])
    assert [trial.config.name for trial in paper] == [
        f"{data}_resnet50.yaml" for data in ("fashion_mnist", "cifar10", "cifar100")
    ]
    with pytest.raises(ConfigError, match="--size small has no cifar100; use --data cifar10"):
        table_trials("small", ["cifar100"], ["bp"], [0])


def test_every_method_of_the_table_is_a_config_that_can_run() -> None:
    for trial in [*table_trials("small", None, list(METHODS), [0]), *table_trials("paper", None, list(METHODS), [1])]:
        config = resolved(trial.config, trial.settings())
        assert (config["method"], config["seed"]) == (trial.labels["method"], trial.seed)


@pytest.mark.parametrize(
    ("keys", "message"), [(["a", "b", "a"], "a is asked for twice"), (["a/b"], "'a/b' cannot name a run directory")]
)
def test_keys_that_cannot_be_are_refused(tmp_path: Path, keys: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_trials([tiny(key) for key in keys], tmp_path / "out.jsonl", tmp_path / "runs", 0)


def test_no_budget_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_trials([tiny("a")], tmp_path / "out.jsonl", tmp_path / "runs", budget_seconds=0)
    assert (outcome.left, outcome.exit_code) == (["a"], 0)
    assert list((tmp_path / "runs").iterdir()) == [] and not (tmp_path / "out.jsonl").exists()
    assert "the budget is spent: a left" in capsys.readouterr().out


@pytest.fixture
def _in_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials start at once."""
    monkeypatch.setattr(processes, "subprocess", forks.SUBPROCESS)


@pytest.mark.usefixtures("_in_forks")
def test_trials_run_once_and_a_failure_leaves_the_others_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, runs = tmp_path / "out.jsonl", tmp_path / "runs"
    bad, part = tiny("bad", **{"optimizer.lr": -1}), tiny("part", stop_at=3)
    never: dict[str, Any] = {"steps": 1, "evaluate.every_epochs": "never"}
    untested = tiny("untested", **never)
    good = [tiny("s0"), tiny("s1", seed=1)]
    outcome = run_trials([bad, untested, part, *good], out, runs, workers=2)
    assert (sorted(outcome.failed), sorted(outcome.finished)) == (["bad", "part", "untested"], ["s0", "s1"])
    assert outcome.exit_code == 1
    text = capsys.readouterr().out
    assert "untested failed, it was never tested; use evaluate.every_epochs=0 or more" in text
    assert "bad failed, exit code 2" in text and "    bllpipe: optimizer.lr" in text
    assert "part failed, status preempted: it ended without its last figures" in text
    _check_records(read(out), runs)
    again = run_trials(good, out, runs, workers=2)
    assert (again.finished, capsys.readouterr().out) == ([], "")
    with pytest.raises(ConfigError, match="holds s0 with other settings: steps: 12 then, 13 now; write the new ones"):
        run_trials([tiny("s0", steps=13)], out, runs)


def _check_records(records: Sequence[Any], runs: Path) -> None:
    by_key = {found["key"]: found for found in records}
    assert by_key.keys() == {"s0", "s1"}
    for key, found in by_key.items():
        summary = jobs.summary(runs / key)
        shared = ("steps", "test_accuracy", "block_accuracy", "parameters", "state_sha256")
        assert [found[name] for name in shared] == [summary[name] for name in shared]
        facts = [found[name] for name in ("seed", "method", "data", "size", "workers", "resumed")]
        assert facts == [int(key[1]), "bll", "digits", "tiny", 2, False]
        assert found["overrides"] == TINY and found["environment"]["torch"]
        assert not (runs / key / "checkpoints").exists()
    assert by_key["s0"]["state_sha256"] != by_key["s1"]["state_sha256"]


def test_the_budget_interrupts_and_the_run_goes_on_to_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, runs = tmp_path / "out.jsonl", tmp_path / "runs"
    settings = {"steps": 20, "checkpoint.every_steps": 5, "evaluate.every_epochs": 0}
    pause = jobs.fault_variables("rank=0,step=8,point=update,action=sleep,seconds=10")  # or it might end before
    trial, next_ended = tiny("long", **settings), Processes.next_ended

    def spent_with_the_first_checkpoint(self: Processes, timeout: float) -> tuple[str, int] | None:
        wait_until(lambda: any(runs.glob("long/checkpoints/step-*")))
        return next_ended(self, 0.0)

    with monkeypatch.context() as patch:
        patch.setattr(Processes, "next_ended", spent_with_the_first_checkpoint)
        for name, value in pause.items():
            patch.setenv(name, value)
        assert run_trials([trial], out, runs, 3600.0).left == ["long"], "it ended before it was interrupted"
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(runs) not in left and not out.exists()
    monkeypatch.setattr(processes, "subprocess", forks.SUBPROCESS)
    outcome = run_trials([trial], out, runs, keep_runs=True)
    assert outcome.finished == ["long"] and any(runs.glob("long/checkpoints/step-*"))
    (found,) = read(out)
    straight = jobs.in_this_process(tmp_path / "straight", *(f"{k}={v}" for k, v in (TINY | settings).items()))
    assert found["resumed"] and found["state_sha256"] == straight["state_sha256"]


EXPERIMENT = """
config: CONFIG
common: {engine: sequential, model.width: 4, data: {batch_size: 32}, steps: 3}
variants:
  whole: {blocks: 1}
  halves: {blocks: 2, steps: 4}
"""


@pytest.mark.usefixtures("_in_forks")
def test_an_experiment_is_variants_times_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "some.yaml", tmp_path / "some.jsonl"
    file.write_text(EXPERIMENT.replace("CONFIG", str(DIGITS)))
    trials = experiments.experiment_trials(str(file), [0, 1], "x")
    assert [trial.key for trial in trials] == ["whole-s0", "halves-s0", "whole-s1", "halves-s1"]
    assert trials[3].overrides["data.batch_size"] == 32 and trials[3].overrides["steps"] == 4
    words = ["--out", str(out), "--runs", str(tmp_path / "runs"), "--workers", "2", "--seeds", "0"]
    assert experiments.main(["run", str(file), *words]) == 0
    assert [len(found["block_accuracy"]) for found in read(out) if found["variant"] == "halves"] == [2]
    capsys.readouterr()
    assert experiments.main(["show", str(out)]) == 0
    text = capsys.readouterr().out
    assert "block 1" in text and {line.split()[0] for line in text.splitlines()} == {"variant", "whole", "halves"}


def test_experiments_are_shown_in_order_with_every_block() -> None:
    last = record("bp", 0, 60.0, key="deep-s0", variant="deep", block_accuracy=[0.4, 0.5, 0.6], resumed=True)
    first = [{**one, "variant": "plain"} for one in BP]
    lines = [line.split() for line in experiments.show([*first, last]).splitlines()]
    assert lines[1] == ["plain", "3", "76.00", "±", "1.00", "50.00", "76.00", "-", "10"]
    assert lines[2] == ["deep", "1", "60.00", "40.00", "50.00", "60.00", "-"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config: a.yaml", "holds config; expected config: FILE, variants: NAME: overrides"),
        ("config: a.yaml\nvariants: {}\nseeds: [1]", "holds config, variants, seeds; expected config"),
        ("config: a.yaml\nvariants: {b: 3}", "b is 3; expected lines of the form key.path: value"),
        ("config: a.yaml\ncommon: [1]\nvariants: {}", r"common is \[1\]; expected lines"),
    ],
)
def test_a_wrong_experiment_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "some.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        experiments.experiment_trials(str(tmp_path / "some.yaml"), [0])


def test_a_record_is_one_line(tmp_path: Path) -> None:
    append(tmp_path / "new" / "a.jsonl", BP[0])
    append(tmp_path / "new" / "a.jsonl", BP[1])
    assert [json.loads(line) for line in (tmp_path / "new" / "a.jsonl").read_text().splitlines()] == BP[:2]
