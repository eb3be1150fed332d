"""One trial of ``benchmarks.chaos``: a run, what is done to it, and what becomes of it."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.family import descendants, ranks_of
from tests.support.same_bits import metrics_without_timing, state_digest

BLOCKS = (2, 4)
STEPS, SAVE_EVERY = 60, 5
STARTERS = ("torchrun", "launcher", "hand")
POINTS = (
    "waiting",
    "forward",
    "sent",
    "update",
    "updated",
    "save",
    "tensors",
    "facts",
    "manifest",
    "rename",
    "committed",
)
LATEST = 9.0  # seconds after a start at which it is killed at any moment
TIMEOUT = 120.0  # seconds of one start
SETTINGS = ("model.width=4", "data.batch_size=32", "log.every_steps=7", f"steps={STEPS}")


@dataclass(frozen=True)
class Kill:
    """At ``point`` of ``step`` in ``rank``, or ``seconds`` after the start; of the ``launcher`` with all its ranks if
    there is no rank."""

    rank: int | None
    point: str = ""
    step: int = 0
    seconds: float = 0.0

    def words(self, attempt: int) -> str:
        """As BLLPIPE_FAULT wants it."""
        return f"rank={self.rank},point={self.point},step={self.step},action=kill,attempt={attempt}"


@dataclass(frozen=True)
class Trial:
    """A run and the kills of its first starts, one each."""

    number: int
    starter: str
    blocks: int
    kills: tuple[Kill, ...]

    @classmethod
    def draw(cls, number: int, num_kills: int, draws: random.Random) -> Trial:
        """``num_kills`` of all kinds; steps go on from kill to kill, so that each is reached."""
        starter, blocks = draws.choice(STARTERS), draws.choice(BLOCKS)
        steps = sorted(draws.sample(range(1, STEPS), num_kills))
        return cls(number, starter, blocks, tuple(_draw(draws, starter, blocks, step) for step in steps))

    @property
    def settings(self) -> list[str]:
        settings = (*SETTINGS, f"checkpoint.every_steps={SAVE_EVERY}", f"blocks={self.blocks}")
        return [word for setting in settings for word in ("--set", setting)]


def _draw(draws: random.Random, starter: str, blocks: int, step: int) -> Kill:
    rank = draws.randrange(blocks + 1)
    if draws.random() < 0.3:
        whole = starter == "hand" and draws.random() < 0.5
        return Kill(None if whole else rank, seconds=draws.uniform(0.5, LATEST))
    point = draws.choice(POINTS)
    saves = POINTS.index(point) >= POINTS.index("save")
    return Kill(rank, point, -(-step // SAVE_EVERY) * SAVE_EVERY if saves else step)


@dataclass(frozen=True)
class Outcome:
    """What was really killed (some kills come too late, or at a rank that does not get there), and how it ended."""

    trial: Trial
    killed: list[str]
    survived: bool
    is_identical: bool
    text: str


def undisturbed(folder: Path, blocks: int) -> Path:
    """The run directory of a run that nobody kills."""
    trial = Trial(-1, "hand", blocks, ())
    run_dir = folder / f"undisturbed-{blocks}"
    done = _start(trial, run_dir, ["--set", "engine=sequential"], {}, None)
    assert done[0] == 0, done[1]
    return run_dir


def carry_out(trial: Trial, references: Mapping[int, Path], folder: Path) -> Outcome:
    """The run to its end, however often it is killed."""
    run_dir = folder / f"run-{trial.number}"
    killed, texts, code = [], [], 1
    by_hand = trial.starter == "hand"
    starts: list[tuple[Kill, ...]] = [*((kill,) for kill in trial.kills), ()] if by_hand else [trial.kills]
    for kills in starts:
        points = [kill.words(attempt) for attempt, kill in enumerate(kills) if kill.point]
        faults = {"BLLPIPE_FAULT": ";".join(points), "BLLPIPE_ALLOW_FAULTS": "1"} if points else {}
        killer = Killer([kill for kill in kills if not kill.point])
        code, text = _start(trial, run_dir, [], faults, killer)
        texts.append(text)
        killed += [f"at {point}" for point in re.findall(r"fault on purpose: kill rank \d+ at (\w+)", text)]
        killed += killer.killed
    survived = code == 0
    same = survived and _is_same(run_dir, references[trial.blocks])
    return Outcome(trial, killed, survived, same, "\n".join(texts))


def _is_same(run_dir: Path, reference: Path) -> bool:
    return state_digest(run_dir) == state_digest(reference) and metrics_without_timing(
        run_dir
    ) == metrics_without_timing(reference)


class Killer:
    """Kills at the moments of ``kills``, one start after another."""

    def __init__(self, kills: list[Kill]) -> None:
        self.kills, self.killed = kills, list[str]()

    def watch(self, launcher: subprocess.Popen[str]) -> None:
        """Runs beside the launcher."""
        threading.Thread(target=self._kill, args=(launcher,), daemon=True).start()

    def _kill(self, launcher: subprocess.Popen[str]) -> None:
        for kill in self.kills:
            time.sleep(kill.seconds)
            with suppress(psutil.Error):
                ranks = [process for rank, process in ranks_of(launcher.pid).items() if rank == kill.rank]
                victims = ranks if kill.rank is not None else list(descendants(launcher.pid))
                for victim in victims:
                    psutil.Process(victim).kill()
                if victims:
                    self.killed.append("one rank at any moment" if kill.rank is not None else "all at any moment")


def _start(
    trial: Trial, run_dir: Path, more: list[str], faults: Mapping[str, str], killer: Killer | None
) -> tuple[int, str]:
    """One start; exit code and output."""
    restarts = [] if trial.starter == "hand" else [f"--max-restarts={len(trial.kills) + 3}"]
    resume = ["--run-dir", str(run_dir), "--resume", "auto", *trial.settings, *more]
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={trial.blocks + 1}", *restarts, "-m"]
    words = [*torchrun, "bllpipe.launch"] if trial.starter == "torchrun" else ["bllpipe.launch", *restarts]
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1", **faults}
    launcher = subprocess.Popen(
        [sys.executable, "-m", *words, *resume],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if killer is not None:
        killer.watch(launcher)
    try:
        text, _ = launcher.communicate(timeout=TIMEOUT * (len(trial.kills) + 1))
    except subprocess.TimeoutExpired:
        launcher.kill()
        text = f"TOO LONG\n{launcher.communicate()[0]}"
    return launcher.returncode, text
