"""``pip install`` of a built wheel in an empty environment, and a run from an empty directory."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.jobs import REPOSITORY, succeed
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.ranks
SOURCES = ("bllpipe", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def call(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in ``folder`` that finds nothing of this checkout by itself."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return succeed(
        subprocess.run(words, capture_output=True, text=True, timeout=2 * PATIENCE, env=environment, cwd=folder)
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by pip from a copy of the sources, in which a build leaves files."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():  # as git has it, with links
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / "sources" / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, folder / "sources" / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    call(sys.executable, "-m", "pip", "wheel", *options, str(folder / "sources"), folder=folder)
    (made,) = folder.glob("bllpipe-*.whl")
    return made


def test_a_wheel_holds_what_a_run_needs_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tracked = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "bllpipe").rglob("*.py")}
    assert tracked <= set(names)
    data = {name for name in names if name.startswith("bllpipe/") and not name.endswith(".py")}
    assert data == {
        "bllpipe/py.typed",
        "bllpipe/data/digits.npz",
        "bllpipe/slurm/job.sh",
        *(f"bllpipe/tools/analysis/{name}.html.jinja" for name in ("report", "report_parts")),
        *(f"bllpipe/configs/{path.name}" for path in (REPOSITORY / "configs").glob("*.yaml")),
    }
    others = {name.split("/")[0] for name in names} - {"bllpipe"}
    assert len(others) == 1 and others.pop().endswith(".dist-info")


def test_an_installed_bllpipe_trains_in_an_empty_directory(wheel: Path, tmp_path: Path) -> None:
    """The libraries are those of this environment, as there may be no network."""
    home, empty = tmp_path / "environment", tmp_path / "empty"
    venv.create(home, symlinks=True)
    empty.mkdir()
    (packages,) = home.glob("lib/python*/site-packages")
    libraries = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()])
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n")
    python, command = str(home / "bin" / "python"), str(home / "bin" / "bllpipe")
    options = ["install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    call(sys.executable, "-m", "pip", "--python", python, *options, folder=empty)
    where = call(python, "-c", "import bllpipe; print(bllpipe.__file__)", folder=empty).stdout
    assert Path(where.strip()).is_relative_to(packages)
    said = call(command, "train", "--set", "epochs=2", "--set", "model.width=4", folder=empty).stdout
    assert "state_sha256" in said
    (run,) = (empty / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["engine"], summary["world_size"], summary["epochs"]) == ("ranks", 5, 2.0)
    checked = call(command, "check", "--config", "configs/cifar10_small.yaml", "--config-only", folder=empty).stdout
    assert "name: cifar10" in checked
