"""Real jobs for tests: started as a user starts them, with small models, and read back from their run directories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.family import ranks_of
from bllpipe import launch
from tests.support import forks
from tests.support.forks import ForkedPython
from tests.support.spawning import launch_ranks
from tests.support.waiting import PATIENCE

REPOSITORY = Path(__file__).parents[2]
CALM = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
AS_THEY_ARE = ("data.augment.crop_padding=0", "data.augment.rotation=0")  # the images
LEARNER = "model.name=tests.support.networks.engines:learner"  # learns the digits in a fraction of a ResNet's time
RESNET = ("model.width=4", "data.batch_size=32", "log.every_steps=5")  # ResNet-18
# Digits, and a network of as many units as ResNet-18 that takes a third of its time.
SMALL = ("model.name=tests.support.networks.engines:eight", "data.batch_size=32", "log.every_steps=5")
# For what does not depend on the network: a step, and a start, in less than half the time. Three blocks at most.
TINY = (
    *("model.name=tests.support.networks.engines:quick", "blocks=2", "data.name=synthetic", "data.image_size=8"),
    *("data.synthetic_images=512", "data.batch_size=16", "log.every_steps=5"),
)
# The same with a pause in every step, so that little is computed before a disturbance comes.
UNHURRIED = (*TINY, "model.name=tests.support.networks.ranks:unhurried", "model.args.seconds=0.03")


def words(run_dir: Path | None, *settings: str, options: tuple[str, ...] = ()) -> list[str]:
    """Command-line words for a job with ``settings`` (key=value)."""
    overrides = [word for setting in settings for word in ("--set", setting)]
    return [*overrides, *(["--run-dir", str(run_dir)] if run_dir else []), *options]


def in_this_process(run_dir: Path, *settings: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Runs a single-process engine here; its summary."""
    assert launch.main(words(run_dir, *settings, options=options)) == 0
    return summary(run_dir)


def ranks(
    num_ranks: int,
    arguments: list[str],
    module: str = "bllpipe.launch",
    timeout: float = PATIENCE,
    fault: str = "",
    nodes: Sequence[int] = (),
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """A job whose ranks find what torchrun would tell them, and are forked: for what is not about torchrun itself, and
    in a fraction of its time; with a fault on purpose. ``nodes`` are numbers of ranks of several nodes."""
    variables = {**CALM, **fault_variables(fault), **variables}
    return launch_ranks(num_ranks, arguments, variables, module, timeout, nodes)


def torchrun(
    num_ranks: int, arguments: list[str], module: str = "bllpipe.launch", timeout: float = PATIENCE, **variables: str
) -> subprocess.CompletedProcess[str]:
    """``torchrun --nproc_per_node=num_ranks -m module arguments``."""
    return _run(_torchrun(num_ranks, module, arguments), timeout, variables)


def forked_torchrun(num_ranks: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """``torchrun`` of forks, agent and ranks; tests/ranks/test_launcher.py starts it as a user does."""
    return forks.run(_torchrun(num_ranks, "bllpipe.launch", arguments), env=_environment({}), cwd=REPOSITORY)


def _torchrun(num_ranks: int, module: str, arguments: list[str]) -> list[str]:
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    return [*agent, "-m", module, *arguments]


def started(arguments: list[str], torchrun: int = 0, fault: str = "") -> ForkedPython:
    """``python -m bllpipe.launch arguments``, or the same as ``torchrun`` ranks of torchrun, under way in forks, its
    output in one file, with a fault on purpose."""
    agent = ["torch.distributed.run", "--standalone", f"--nproc_per_node={torchrun}", "-m"] if torchrun else []
    words = ["-m", *agent, "bllpipe.launch", *arguments]
    return ForkedPython(words, _environment(fault_variables(fault)), REPOSITORY)


def rank_processes(launcher: ForkedPython) -> dict[int, psutil.Process]:
    """The ranks that ``launcher`` has started, by their number."""
    found = {}
    for rank, process in ranks_of(launcher.pid).items():
        with suppress(psutil.Error):
            if psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
                found[rank] = psutil.Process(process)
    return found


def steps_done(run_dir: Path) -> int:
    """The last step that any rank has written to metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((int(json.loads(line)["step"]) for line in lines if line.endswith("\n")), default=0)


def forked(arguments: list[str], fault: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """``python -m bllpipe.launch arguments`` in a fork, with a fault on purpose."""
    environment = _environment({**fault_variables(fault), **variables})
    return forks.run([sys.executable, "-m", "bllpipe.launch", *arguments], env=environment, cwd=REPOSITORY)


def alone(arguments: list[str], fault: str = "", timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """``python -m bllpipe.launch arguments``, in a process with nothing of this one, with a fault on purpose."""
    return _run([sys.executable, "-m", "bllpipe.launch", *arguments], timeout, fault_variables(fault))


def summary(run_dir: Path) -> dict[str, Any]:
    return read_json(run_dir / "summary.json")


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def read_json(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def succeed(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The finished process, or a failure that shows what it said."""
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _run(command: list[str], timeout: float, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=_environment(variables), cwd=REPOSITORY
    )


def fault_variables(fault: str) -> dict[str, str]:
    """What brings a fault about, if there is one."""
    return {"BLLPIPE_FAULT": fault, "BLLPIPE_ALLOW_FAULTS": "1"} if fault else {}


def _environment(variables: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **CALM, **variables}
