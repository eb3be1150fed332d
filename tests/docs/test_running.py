"""What the pages tell a reader to type or to write is done: their Python, and the quick ones of their commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from bllpipe import cli
from tests.docs.pages import REPOSITORY, Page, all_pages
from tests.docs.running import python_of, quick, run_python
from tests.docs.shell import calls, make_place

SETTINGS = ("steps=12", "model.width=4", "engine=sequential", "checkpoint.every_steps=6", "log.every_steps=4")
TRACED = ("trace.num_steps=6", "trace.first_step=4")
WITH_PYTHON = [page for page in all_pages() if python_of(page).program]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("reader") / "repository")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader types: with the configs, and a short run in ``runs/A``."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    (folder / "docs").mkdir()
    words = [part for setting in (*SETTINGS, *TRACED) for part in ("--set", setting)]
    assert cli.main(["train", *words, "--run-dir", str(folder / "runs" / "A")]) == 0
    return folder


def test_quick_commands_do_what_the_pages_say(
    place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every one once, wherever it stands."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    done: set[tuple[str, ...]] = set()
    for page in all_pages():
        for name, text in python_of(page).files.items():
            (folder / name).write_text(text)
        for block in page.blocks:
            for call in calls(block.text, place) if block.kind == "commands" else ():
                words = tuple(quick(call, folder) or ())
                if words and words not in done:
                    code = cli.main(words)
                    assert code == 0, (
                        f"{page.name}, line {block.line}: bllpipe {' '.join(words)}: {capsys.readouterr()}"
                    )
                    done.add(words)
    assert {words[0] for words in done} >= {"train", "timeline"}, done


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_runs_from_top_to_bottom(page: Page, tmp_path: Path) -> None:
    done = run_python(python_of(page), tmp_path)
    assert done.returncode == 0, f"{page.name}: {done.stdout}{done.stderr}"
