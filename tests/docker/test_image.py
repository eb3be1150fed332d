"""The image, as far as a machine without a Docker engine can tell: what is copied is there, versions are pinned,
nothing runs as root, and the commands run here in their order in a fresh virtual environment.

``NOT_RUN`` says which do not, and why; ``make test-image`` runs them too."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from tests.docker.dockerfile import DOCKER, REPOSITORY, Instruction, copy, instructions, only

NOT_RUN = {
    "pip install --no-deps --index-url": "three gigabytes: the fresh environment sees the torch of this one",
    "pip install --requirement": "needs the network: it sees the packages of this environment, whatever their versions",
    "pip check": "this environment has more packages than the image",
    "useradd": "makes a user of this machine",
}


def is_run(instruction: Instruction) -> bool:
    return not any(instruction.text.startswith(command) for command in NOT_RUN)


def pins() -> dict[str, str]:
    """The version of every package in requirements.txt."""
    lines = (DOCKER / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_what_is_copied_is_there_and_is_sent_to_the_engine() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    sources = [source for copy in only("COPY") for source in copy.copied[0]]
    assert {"bllpipe", "setup.cfg", "configs"} <= set(sources)
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert not any(fnmatch(source, pattern) for pattern in ignored), source


def test_every_package_that_is_needed_has_one_version() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    needed = {re.split("[<>=]", line)[0] for line in setup["options"]["install_requires"].split()}
    assert needed <= pins().keys()
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins().values())
    (torch,) = [run for run in only("RUN") if "--index-url" in run.text]
    assert torch.words[-2:] == [f"{name}=={pins()[name]}" for name in ("torch", "torchvision")]


def test_images_have_a_version() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    images = [only("FROM")[0].text, *(service["image"] for service in services.values() if "image" in service)]
    assert len(images) == 3 and all(re.search(r":v?\d+\.\d+\.\d+", image) for image in images)


def test_the_files_that_compose_mounts_are_there() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    mounts = [mount.split(":")[0] for service in services.values() for mount in service["volumes"]]
    ours = [mount for mount in mounts if mount.startswith("./")]
    assert len(ours) == 4 and all((DOCKER / mount).exists() for mount in ours)


def test_nothing_runs_as_root() -> None:
    keywords = [instruction.keyword for instruction in instructions()]
    assert keywords.index("USER") < keywords.index("HEALTHCHECK") < keywords.index("ENTRYPOINT")
    assert [user.text for user in only("USER")] == ["bllpipe"]


@dataclass(frozen=True)
class Environment:
    """A fresh virtual environment, the folder that stands for the image's files, and its working directory."""

    bin: Path
    root: Path

    def here(self, word: str) -> str:
        """An absolute path of the image, in the folder that stands for its files."""
        return f"{self.root}{word}" if word.startswith(("/opt", "/home")) else word

    def call(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        """Runs ``words`` where the image would, with nothing of the repository in sight."""
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        variables |= {"PATH": f"{self.bin}:{variables['PATH']}", "OMP_NUM_THREADS": "1"}
        work = self.here(only("WORKDIR")[0].text)
        command = [self.here(word) for word in words]
        return subprocess.run(command, cwd=work, env=variables, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Copies and runs what the Dockerfile says, in its order."""
    folder = tmp_path_factory.mktemp("image")
    made, where = Environment(virtual_environment(folder / "venv"), folder / "root"), "/"
    Path(made.here(only("WORKDIR")[0].text)).mkdir(parents=True)
    for instruction in instructions():
        where = instruction.text if instruction.keyword == "WORKDIR" else where
        if instruction.keyword == "COPY":
            copy(instruction, Path(made.here(where)) / made.here(instruction.copied[1]))
        elif instruction.keyword == "RUN" and is_run(instruction):
            done = made.call(instruction.words)
            assert done.returncode == 0, f"{instruction.text}\n{done.stdout}{done.stderr}"
        elif instruction.keyword == "RUN":
            print(f"not run: {instruction.text}")
    return made


def virtual_environment(folder: Path) -> Path:
    """A fresh one that has pip, and sees the packages of this one; the folder of its commands."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    old = [str(folder / "bin" / "pip"), "uninstall", "--yes", "--quiet", "setuptools"]  # came with Python before 3.12
    subprocess.run(old, check=True, timeout=60)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "environment.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


def test_each_command_is_run_or_it_is_said_why_not(environment: Environment) -> None:
    skipped = [run.text for run in only("RUN") if not is_run(run)]
    assert len(skipped) == len(NOT_RUN), "one for every reason"
    assert [run.words[0] for run in only("RUN") if is_run(run)] == ["pip"]


def test_the_package_is_the_one_that_was_copied(environment: Environment) -> None:
    done = environment.call(["python", "-c", "import bllpipe; print(bllpipe.__file__)"])
    assert Path(done.stdout.strip()).is_relative_to(environment.bin.parent), done.stderr
    done = environment.call(["bllpipe", "check", "--config", "configs/cifar10_resnet50.yaml"])
    assert done.returncode == 0 and "alpha 0->1 " in done.stdout


@pytest.mark.ranks
def test_the_command_trains_and_the_health_check_is_right_before_and_after(environment: Environment) -> None:
    (health,), (entry,), (command,) = only("HEALTHCHECK"), only("ENTRYPOINT"), only("CMD")
    before = environment.call(health.words)
    assert (before.returncode, before.stdout) == (1, "there is no run in runs/\n")
    short = ["--set", "steps=20", "--set", "model.width=4"]
    done = environment.call([*entry.words, *command.words, *short])
    assert done.returncode == 0 and "state_sha256" in done.stdout, done.stdout + done.stderr
    after = environment.call(health.words)
    assert (after.returncode, after.stdout) == (0, "runs/digits-resnet18-bll: completed, step 20\n")
