"""What a notebook shows of a run."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import bllpipe
from bllpipe.tools.analysis import run_html
from tests.support.jobs import SMALL, in_this_process

SETTINGS = ("engine=sequential", *SMALL, "blocks=2", "evaluate.every_epochs=1", "data.batch_size=256")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> bllpipe.Run:
    path = tmp_path_factory.mktemp("runs") / "a<b"
    in_this_process(path, *SETTINGS, "epochs=2", "trace.first_step=2", "trace.num_steps=2")
    return bllpipe.Run(path)


def pictures(page: str) -> list[str]:
    """All words of every drawing of a page, which an XML parser reads."""
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    return [" ".join(ElementTree.fromstring(base64.b64decode(each)).itertext()) for each in found]


def test_a_run_is_a_table_of_its_ranks_and_a_picture(run: bllpipe.Run) -> None:
    page = run._repr_html_()
    rows = re.findall("<tr>(.*?)</tr>", page)
    assert len(rows) == 4  # the heads, two blocks, the feedback
    assert f"{100 * run.block_accuracy[1]:.2f} %" in rows[2]
    assert "a&lt;b" in page and "a<b" not in page
    accuracy, timeline = pictures(page)
    for words in ("Test accuracy of every block's own head", "block 0", "block 1", "training steps"):
        assert words in accuracy
    assert "Timeline" in timeline


def test_a_run_in_the_working_directory_has_a_short_path(run: bllpipe.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(run) == f"Run({str(run.directory)!r}, rank=0)"
    monkeypatch.chdir(run.directory.parent)
    assert repr(run) == "Run('a<b', rank=0)"
    assert "<code>a&lt;b</code>" in run._repr_html_()


def test_a_run_with_one_test_shows_its_training(tmp_path: Path) -> None:
    in_this_process(tmp_path / "short", *SETTINGS, "log.every_steps=1", "steps=3")
    (accuracy,) = pictures(bllpipe.Run(tmp_path / "short")._repr_html_())
    assert "Training accuracy of every block's own head" in accuracy


def test_a_run_without_curves_is_a_table(tmp_path: Path) -> None:
    in_this_process(tmp_path / "short", *SETTINGS, "log.every_steps=5", "steps=1")
    page = bllpipe.Run(tmp_path / "short")._repr_html_()
    assert "<table>" in page and pictures(page) == []


def test_without_matplotlib_there_is_a_table_and_what_to_install(
    run: bllpipe.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_html, "find_spec", lambda name: None)
    page = run._repr_html_()
    assert "<table>" in page and "pip install 'bllpipe[report]'" in page
    assert pictures(page) == []


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    page = bllpipe.Run(tmp_path / "<nothing>")._repr_html_()
    assert page.startswith("<code>Run(") and "summary.json" in page and "<nothing>" not in page
