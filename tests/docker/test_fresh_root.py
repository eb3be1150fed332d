"""The Dockerfile's instructions, every one in its order, in a fresh Debian; and what the image would then do as its own
user: train, say that it is well, stop and go on. ``make test-image``: six gigabytes and some minutes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.docker.dockerfile import instructions, only
from tests.docker.fresh_root import FreshRoot, fresh_root, needs_root

pytestmark = [pytest.mark.image, needs_root, pytest.mark.timeout(3600)]
(ENTRY,), (COMMAND,), (HEALTH,) = only("ENTRYPOINT"), only("CMD"), only("HEALTHCHECK")
RUN_DIR = "runs/digits-resnet18-bll"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshRoot]:
    folder = tmp_path_factory.mktemp("image")
    try:
        start = time.monotonic()
        root = fresh_root(folder / "root")
        print(f"\nFROM a fresh Debian with Python instead: {time.monotonic() - start:.0f} s")
        for instruction in instructions():
            start = time.monotonic()
            root.do(instruction)
            print(f"{instruction.keyword} {instruction.text[:90]}: {time.monotonic() - start:.1f} s")
        yield root
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gigabytes


def size_of(folder: Path) -> float:
    """In gigabytes, as ``du`` counts."""
    done = subprocess.run(["du", "-s", "-B1", folder], capture_output=True, text=True, timeout=120)
    return int(done.stdout.split()[0]) / 1e9


def test_all_packages_have_the_versions_that_are_pinned(image: FreshRoot) -> None:
    found = image.run(["pip", "list", "--format=freeze"]).stdout.splitlines()
    pinned = (image.path / "opt/bllpipe/docker/requirements.txt").read_text().splitlines()
    names = {line.split("+")[0].lower().replace("_", "-") for line in found}
    assert {line for line in pinned if not line.startswith("#")} <= names
    print(f"\n{len(found)} packages, {size_of(image.path):.1f} GB")


def test_it_runs_as_a_user_that_may_not_change_the_image(image: FreshRoot) -> None:
    assert image.run(["id", "-u"]).stdout.strip() == "1000"
    assert image.run(["touch", "/opt/bllpipe/x"]).returncode != 0
    assert image.run(["touch", "configs/x"]).returncode == 0, "its own files it may"


def test_it_trains_and_is_well_afterwards(image: FreshRoot) -> None:
    before = image.run(HEALTH.words)
    assert (before.returncode, before.stdout) == (1, "there is no run in runs/\n")
    done = image.run([*ENTRY.words, *COMMAND.words])
    assert done.returncode == 0, done.stdout + done.stderr
    after = image.run(HEALTH.words)
    assert (after.returncode, after.stdout) == (0, f"{RUN_DIR}: completed, step 440\n")
    print("\n" + done.stdout[done.stdout.index("rank  role") :])


def test_it_stops_with_a_checkpoint_and_goes_on(image: FreshRoot) -> None:
    words = [*ENTRY.words, *COMMAND.words, "--run-dir", "runs/stopped", "--resume", "auto", "--set", "epochs=40"]
    metrics = image.path / "home/bllpipe/runs/stopped/metrics.jsonl"
    with subprocess.Popen(image.command(words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        deadline = time.monotonic() + 180
        while not (metrics.exists() and metrics.stat().st_size):
            assert job.poll() is None and time.monotonic() < deadline, job.communicate()[0]
            time.sleep(0.1)
        (main,) = psutil.Process(job.pid).children()
        main.send_signal(getattr(signal, only("STOPSIGNAL")[0].text))
        said, _ = job.communicate(timeout=60)
    assert job.returncode == 143 and "stopping with a checkpoint" in said, said
    done = image.run([*words, "--set", "stop_at=300"])
    assert done.returncode == 0 and "resumes from step" in done.stdout + done.stderr, done.stdout + done.stderr


def test_another_config_of_the_image_is_understood(image: FreshRoot) -> None:
    done = image.run([*ENTRY.words, "check", "--config", "configs/cifar10_resnet50.yaml"])
    assert done.returncode == 0 and "# ranks: 0 block 0" in done.stdout
