"""Many runs of the launcher, some of them concurrent, within a time budget.

Finished runs are recorded; the same command resumes the others from their checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.processes import Processes
from benchmarks.records import append, differences, read
from bllpipe.config import load_config, to_mapping
from bllpipe.config.loader import flat, stored_mapping
from bllpipe.errors import ConfigError
from bllpipe.utils.console import Bar

FROM_SUMMARY = (
    "epochs",
    "steps",
    "test_accuracy",
    "block_accuracy",
    "seconds",
    "images_per_second",
    "parameters",
    "state_sha256",
)
OF_ENSEMBLES = {"ensemble_accuracy"}  # with evaluate.ensemble
LOG_LINES = 12


@dataclass(frozen=True)
class Trial:
    """One run. ``key`` identifies it; ``overrides`` maps key.path to a value; ``labels`` are added to its record."""

    key: str
    config: Path
    overrides: Mapping[str, Any]
    seed: int
    labels: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> list[str]:
        """The overrides as the launcher reads them."""
        return [f"{key}={json.dumps(value)}" for key, value in {**self.overrides, "seed": self.seed}.items()]

    def command(self, run_dir: Path) -> list[str]:
        """One thread a process: several share the cores, and results depend on the number."""
        overrides = [text for setting in self.settings() for text in ("--set", setting)]
        start = ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", "bllpipe.launch", "--config", str(self.config)]
        return [*start, *overrides, "--run-dir", str(run_dir), "--resume", "auto"]


@dataclass
class Outcome:
    """Keys of the trials that this call finished, that failed, and that are still to be done."""

    finished: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


def run_trials(
    trials: Sequence[Trial],
    out: Path,
    runs: Path,
    budget_seconds: float = math.inf,
    workers: int = 1,
    keep_runs: bool = False,
) -> Outcome:
    """Carries out what ``out`` does not hold yet, ``workers`` at a time, for at most ``budget_seconds``.

    A finished trial is one line of ``out``; its run directory is ``runs``/key, its output ``runs``/key.log. Raises
    ConfigError when ``out`` holds a trial of the same key that was run with other settings.
    """
    todo = unfinished(trials, out)
    runs.mkdir(parents=True, exist_ok=True)
    return _Session(todo, out, runs, time.monotonic() + budget_seconds, workers, keep_runs).run()


def unfinished(trials: Sequence[Trial], out: Path) -> list[Trial]:
    """Those without a record in ``out``."""
    _check_keys([trial.key for trial in trials])
    done = {record["key"]: record for record in (read(out) if out.exists() else [])}
    for trial in trials:
        changed = (
            differences(done[trial.key]["config"], resolved(trial.config, trial.settings()))
            if trial.key in done
            else ""
        )
        if changed:
            raise ConfigError(
                f"{out} holds {trial.key} with other settings: {changed}; "
                f"write the new ones with another --out and --runs, or delete that line and its run directory"
            )
    return [trial for trial in trials if trial.key not in done]


def resolved(config: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Every key of a config with its value."""
    return flat(to_mapping(load_config(str(config), settings)))


def without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the name of the data's file instead of its path on this machine."""
    path = settings.get("data.path")
    return {**settings, "data.path": Path(path).name} if path else dict(settings)


def _check_keys(keys: Sequence[str]) -> None:
    double = [key for key, count in Counter(keys).items() if count > 1]
    if double:
        raise ConfigError(f"{double[0]} is asked for twice; name every seed, method, data set and variant once")
    for key in keys:
        if not re.fullmatch(r"\w[\w.,+=-]*", key):
            raise ConfigError(
                f"{key!r} cannot name a run directory; use letters, digits and . , + = - _ in the names of variants"
            )


class _Session:
    """One call of run_trials."""

    def __init__(
        self, todo: Sequence[Trial], out: Path, runs: Path, deadline: float, workers: int, keep_runs: bool
    ) -> None:
        self.trials = {trial.key: trial for trial in todo}
        self.out, self.runs, self.deadline, self.workers, self.keep_runs = out, runs, deadline, workers, keep_runs
        self.resumed: dict[str, bool] = {}
        self.outcome, self.bar = Outcome(left=list(self.trials)), Bar("trials", len(self.trials))

    def run(self) -> Outcome:
        with self.bar:
            self._run(deque(self.trials.values()), Processes())
        if self.outcome.left:
            self._print(
                f"the budget is spent: {', '.join(self.outcome.left)} left; run the same command again to continue"
            )
        return self.outcome

    def _run(self, waiting: deque[Trial], processes: Processes) -> None:
        try:
            while True:
                while waiting and len(processes) < self.workers and time.monotonic() < self.deadline:
                    self._start(processes, waiting.popleft())
                ended = processes.next_ended(self.deadline - time.monotonic()) if len(processes) else None
                if ended is None:
                    break
                self._finish(*ended)
        finally:
            for key, code in processes.stop():
                self._finish(key, code, interrupted=True)

    def _start(self, processes: Processes, trial: Trial) -> None:
        run_dir = self.runs / trial.key
        self.resumed[trial.key] = any(run_dir.glob("checkpoints/step-*"))
        processes.start(trial.key, trial.command(run_dir), self._log(trial.key))
        self._print(f"{trial.key} {'resumes' if self.resumed[trial.key] else 'starts'}")

    def _finish(self, key: str, code: int, interrupted: bool = False) -> None:
        if code and interrupted:
            return self._print(f"{key} is interrupted; it will resume from its last checkpoint")
        self.outcome.left.remove(key)
        self.bar.advance(key)
        reason = f"exit code {code}" if code else _not_complete(self.runs / key)
        if reason:
            self.outcome.failed.append(key)
            return self._print(f"{key} failed, {reason}; the end of {self._log(key)}:\n{_tail(self._log(key))}")
        record = self._record(self.trials[key])
        append(self.out, record)
        self.outcome.finished.append(key)
        if not self.keep_runs:
            shutil.rmtree(self.runs / key / "checkpoints")
        self._print(f"{key} ends with {100 * record['test_accuracy']:.2f} % after {record['seconds']:.0f} s")

    def _record(self, trial: Trial) -> dict[str, Any]:
        """``seconds`` and ``images_per_second`` are of the last piece when the trial was ``resumed``."""
        run_dir = self.runs / trial.key
        config = flat(stored_mapping(str(run_dir / "config.yaml")))
        summary = _json(run_dir / "summary.json")
        return {
            "key": trial.key,
            "method": config["method"],
            "data": config["data.name"],
            **trial.labels,
            "seed": trial.seed,
            "overrides": without_folders(trial.overrides),
            **{name: summary[name] for name in (*FROM_SUMMARY, *(OF_ENSEMBLES & summary.keys()))},
            "resumed": self.resumed[trial.key],
            "workers": self.workers,
            "environment": _json(run_dir / "env.json"),
            "finished": datetime.now(UTC).isoformat(),
            "config_file": trial.config.name,
            "config_sha256": hashlib.sha256(trial.config.read_bytes()).hexdigest(),
            "config": without_folders(config),
        }

    def _print(self, text: str) -> None:
        minutes = max(self.deadline - time.monotonic(), 0.0) / 60
        budget = "" if math.isinf(minutes) else f", {minutes:.1f} min"
        print(f"[{len(self.outcome.left)} left{budget}] {text}", flush=True)

    def _log(self, key: str) -> Path:
        return self.runs / f"{key}.log"


def _not_complete(run_dir: Path) -> str:
    """Why a run that ended well has no result; empty if it has."""
    status = _json(run_dir / "status.json")["status"]
    if status == "completed" and (run_dir / "summary.json").exists():
        is_tested = _json(run_dir / "summary.json")["test_accuracy"] is not None
        return "" if is_tested else "it was never tested; use evaluate.every_epochs=0 or more"
    return f"status {status}: it ended without its last figures; remove its newest checkpoint, or all of {run_dir}"


def _tail(log: Path) -> str:
    return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def _json(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record
