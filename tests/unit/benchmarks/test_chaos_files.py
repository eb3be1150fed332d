"""The short form of ``python -m benchmarks.chaos.files``, and that what fails, hangs or kills its process is told."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos import files as chaos_files
from benchmarks.chaos.archives import archive_families
from benchmarks.chaos.cases import BrokenPromise, Trial, carry_out
from benchmarks.chaos.corruptions import Corruptions, make_run
from benchmarks.chaos.damage import DAMAGES
from benchmarks.chaos.headers import header_families
from benchmarks.chaos.images import image_families
from benchmarks.chaos.texts import text_families
from tests.support import careless_readers
from tests.support.waiting import PATIENCE


def test_everything_survives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--corruptions", "60", "--hostile", "60", "--seed", "1", "--json", str(tmp_path / "found.json")]
    assert chaos_files.main(words) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.splitlines()[-1].startswith("120 of 120 survived, seed 1, ")
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [result["family"] for result in results] == [*DAMAGES, chaos_files.TOGETHER, *chaos_files.HOSTILE]
    assert sum(result["tried"] for result in results) == sum(result["survived"] for result in results) == 120
    assert max(result["memory_bytes"] for result in results) < 300 << 20


def test_a_case_is_the_same_every_time(tmp_path: Path) -> None:
    made = {**header_families(), **text_families(), **archive_families(), **image_families()}
    for name, make in made.items():
        cases = []
        for turn in ("one", "two"):
            folder = tmp_path / name / turn
            folder.mkdir(parents=True)
            cases.append(make(random.Random(name), folder).what)
        assert cases[0] == cases[1]


def test_who_does_not_survive_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["good", "accepts", "crashes", "breaks", "leaves", "dies", "hangs", "grows", "good"]

    def trials() -> Iterator[Trial]:
        for name in names:  # only one is to take longer than it may
            monkeypatch.setattr("benchmarks.chaos.cases.SECONDS", 5.0 if name == "hangs" else PATIENCE)
            yield Trial(name, 0)

    found = list(carry_out(trials(), 0, careless_readers.families, tmp_path))
    assert [outcome.what for outcome in found] == names
    said = [outcome.broken for outcome in found]
    assert said[:4] == [None, "was accepted", "IndexError: list index out of range", "the wrong one was taken"]
    assert said[4:7] == ["ended with exit code 3", "killed by SIGKILL", "was not done after 5 s"]
    assert said[7] is not None and said[7].startswith("took ") and said[8] is None


def test_equally_many_of_every_family() -> None:
    trials = list(chaos_files.plan(13, 9))
    assert len(trials) == 22 and [trial.number for trial in trials if trial.family == "a flipped bit"] == [0, 1]
    assert [trial for trial in trials if trial.family == "image folders"] == [Trial("image folders", 0)]


@pytest.fixture(scope="module")
def corruptions(tmp_path_factory: pytest.TempPathFactory) -> Corruptions:
    folder = tmp_path_factory.mktemp("chaos")
    make_run(folder / "run")
    return Corruptions(folder / "run" / "checkpoints")


def broken(corruptions: Corruptions, folder: Path) -> str:
    """What the first case says that does not survive."""
    for number in range(20):
        (folder / str(number)).mkdir()
        try:
            corruptions.families()["a flipped bit"](random.Random(number), folder / str(number)).run()
        except BrokenPromise as error:
            return str(error)
    return "nothing"


def test_a_reader_that_finds_nothing_would_be_found(
    corruptions: Corruptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert broken(corruptions, tmp_path) == "nothing"
    monkeypatch.setattr("benchmarks.chaos.corruptions.find_checkpoint", lambda directory, warn: None)
    (tmp_path / "again").mkdir()
    assert broken(corruptions, tmp_path / "again").startswith("took None, expected ")


def test_a_reader_that_trusts_everything_would_be_found(
    corruptions: Corruptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bllpipe.checkpoint.format.FileEntry.verify", lambda entry, path: None)
    assert broken(corruptions, tmp_path).startswith(("took Checkpoint(", "bllpipe ckpt verify calls "))
