"""Methods at their best rates, compared on other seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import experiments
from benchmarks.comparison import compare, name_of
from benchmarks.experiments import experiment_trials
from bllpipe.config import load_config
from bllpipe.errors import ConfigError
from tests.support.jobs import REPOSITORY

QUESTIONS = sorted((REPOSITORY / "benchmarks" / "questions").glob("*.yaml"))


def record(variant: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    config = {"seed": seed, "optimizer.lr": float(variant.partition("-lr")[2] or 0.1)}
    figures = {"test_accuracy": accuracy, "block_accuracy": [accuracy - 0.1, accuracy]}
    labels = {"key": f"{variant}-s{seed}", "variant": variant, "seed": seed, "finished": "2026-01-01"}
    return {**labels, **figures, "config": config, **more}


TRIALS = [
    *(record("bp-lr0.1", seed, 0.60 + seed / 100) for seed in (3, 4)),
    *(record("bp-lr0.4", seed, 0.70 + seed / 100) for seed in (0, 1, 2, 3, 4)),
    *(record("strided-lr0.1", seed, 0.5) for seed in (0, 3, 4)),
    *(record("strided-lr0.4", seed, 0.69 + seed / 100) for seed in (0, 1, 3, 4)),
    record("strided-lr0.8", 3, 0.99),
    *(record("gap", seed, 0.65, ensemble_accuracy=0.66) for seed in (0, 1, 2)),
]


def cells(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rates_are_chosen_on_some_seeds_and_compared_on_others() -> None:
    text = compare(TRIALS, "bp", [3, 4], [0, 1, 2], markdown=True)
    assert cells(text, "bp") == ["bp", "0.4 (0.1, 0.4)", "73.50 ± 0.71 (2)", "71.00 ± 1.00 (3)", "-", "61.0 71.0", "-"]
    name, rate, tuned, reported, difference, *_ = cells(text, "strided")
    assert (name, rate, tuned) == ("strided", "0.4 (0.1, 0.4, 0.8)", "72.50 ± 0.71 (2)")
    assert (reported, difference) == ("69.50 ± 0.71 (2)", "-1.00 (0.00)"), "of the seeds that both have"
    assert "strided: fewer seeds at rate 0.8, which cannot be chosen" in text
    assert cells(text, "gap")[1:] == ["-", "-", "65.00 ± 0.00 (3)", "-6.00 (0.58)", "55.0 65.0", "66.00 ± 0.00 (3)"]


def test_what_is_compared_with_must_be_there() -> None:
    with pytest.raises(ConfigError, match="--against bp: expected one of the methods, but there are no runs$"):
        compare([], "bp", [3, 4], [0, 1, 2])
    with pytest.raises(ConfigError, match="--against fa: expected one of bp, strided, gap"):
        compare(TRIALS, "fa", [3, 4], [0, 1, 2])


def test_a_rate_that_the_reported_seeds_chose_themselves_is_told() -> None:
    both = [record("bp-lr0.1", 0, 0.6), record("bp-lr0.4", 0, 0.7), record("gap", 0, 0.6)]
    text = compare(both, "bp", [3, 4], [0], markdown=True)
    assert "bp: no record of a seed for tuning; its rate is chosen by the accuracies of the report" in text
    assert "gap: no" not in text, "it has one rate"
    assert "for tuning" not in compare(TRIALS, "bp", [3, 4], [0, 1, 2])


def test_the_command_reads_files_and_takes_some_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in TRIALS))
    assert experiments.main(["compare", str(file), "--only", "bp", "str*"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].startswith("method") and "gap" not in text and "all heads" not in text
    assert {name_of(each) for each in TRIALS} == {"bp", "strided", "gap"}


@pytest.mark.parametrize("file", QUESTIONS, ids=lambda file: file.stem)
def test_every_question_can_be_asked(file: Path) -> None:
    """And those that mean linear heads as they were measured say that these are not scaled."""
    for trial in experiment_trials(str(file), [0], data_path="data/some.npz"):
        config = load_config(str(REPOSITORY / trial.config), trial.settings())
        is_plain = config.objective.head == "linear" and not config.is_end_to_end and "scaled" not in trial.key
        assert config.objective.is_head_scaled is ("scaled" in trial.key) or not is_plain
        assert config.objective.head_scale != "auto", "results that are there have a value"
