"""docs/examples/tour.ipynb runs as it stands; the committed one shows its outputs and nothing of a machine."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import REPOSITORY
from tests.support.waiting import PATIENCE

TOUR = REPOSITORY / "docs" / "examples" / "tour.ipynb"
MAX_BYTES = 300_000
ACCURACIES = re.compile(r"([\d.]+) by torchvision, ([\d.]+) in the run")


def printed(notebook: Any) -> str:
    """Everything that the cells of a notebook printed."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return "".join("".join(output.get("text", "")) for output in outputs)


def test_the_notebook_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed; pip install '.[notebook]'")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for variable in ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    place = tmp_path / "place"
    place.mkdir()
    notebook = nbformat.read(TOUR, as_version=4)
    resources = {"metadata": {"path": str(place)}}
    NotebookClient(notebook, timeout=2 * PATIENCE, kernel_name="python3", resources=resources).execute()
    found = ACCURACIES.search(printed(notebook))
    assert found is not None and found[1] == found[2]
    assert float(found[1]) > 0.5  # chance: 0.25
    shown = [output["data"] for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert any("<table>" in data.get("text/html", "") and "svg+xml" in data["text/html"] for data in shown)


def test_the_committed_notebook_is_executed_small_and_of_no_machine() -> None:
    text = TOUR.read_text()
    assert len(text) < MAX_BYTES
    assert not re.search(r"/(tmp|home|root|work|usr|Users)/", text)
    assert socket.gethostname() not in re.findall(r"[\w.-]+", text) or len(socket.gethostname()) < 4
    notebook = json.loads(text)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert ACCURACIES.search(printed(notebook))
