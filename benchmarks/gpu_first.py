"""The first five minutes on a GPU: does it work, in which settings, and how fast is it?

Versions, then forty steps of ResNet-18 with every value of gpu.capture, then the GPU tests while the compiler works
ahead, then rates of ResNet-50. Each part has its own time limit, and its failure does not end the others. The results
so far are in OUT/first.json and OUT/gpu.json at any time; the tests write OUT/gpu-tests.log.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import NO_GPU, compare, conclude
from benchmarks.gpu_cases import Case, Group, Scale, make_case
from benchmarks.gpu_report import Ledger
from benchmarks.gpu_runs import measure, surroundings
from benchmarks.gpu_worker import Worker
from bllpipe.utils.files import atomic_write

# Seconds. What a part does not take is left for the rates, which come last.
WHOLE, VERSIONS, SMOKE, TESTS, CASE, COMPILED_CASE = 290.0, 60.0, 30.0, 100.0, 45.0, 100.0
TO_THE_END = 6.0  # for the tables
REPORT_SECONDS = 10.0  # for interrupted tests to report failures
SMOKE_VARIANTS = {"false": "bll eager", "blocks": "bll blocks", "true": "bll one graph"}  # gpu.capture, and who uses it
BEST_FIRST = ("true", "blocks", "false")
COMPILED = "bll one graph compiled"
SMOKE_STEPS, AHEAD_STEPS = 20, 4  # between two lines; each run makes twice as many
# Network, batch, variants and repetitions, in this order.
RATES = (
    ("resnet50", 128, ("bp captured", "bll one graph", "bll blocks", "bp eager"), 2),
    ("resnet50", 32, ("bp captured", "bll one graph"), 2),
    ("resnet50", 512, ("bp captured", "bll one graph"), 1),
    ("resnet50", 128, ("bp compiled captured", "bll one graph compiled"), 1),
    ("resnet50", 512, ("bp captured", "bll one graph"), 1),
    ("resnet50", 128, ("bp compiled captured", "bll one graph compiled"), 1),
    ("resnet50", 32, ("bll blocks",), 2),
    ("resnet50", 512, ("bll blocks",), 2),
)


@dataclass
class Report:
    """The results so far, in a file that is rewritten after every change."""

    path: Path
    known: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, value: Any) -> None:
        self.known[name] = value
        atomic_write(self.path, json.dumps(self.known, indent=1) + "\n")

    def carry_out(self, name: str, part: Callable[[], Any]) -> None:
        """Records what ``part`` returns under its name; an error is recorded and printed, and the next part follows."""
        began = time.monotonic()
        print(f"== {time.strftime('%T')} {name}", flush=True)
        try:
            self.put(name, part())
        except Exception as error:  # of any kind: the next part runs all the same
            self.put(name, {"error": f"{type(error).__name__}: {error}"})
            print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
        self.put("seconds", {**self.known.get("seconds", {}), name: round(time.monotonic() - began, 1)})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all parts; the exit code is 1 if one has failed."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # an exit stops the child processes
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds - TO_THE_END
    scale = Scale(options.device, options.quick, tuple(options.overrides), options.spoil)
    report = Report(options.out / "first.json")
    with Worker() as worker:
        report.carry_out("versions", lambda: versions(worker, scale, deadline))
        report.carry_out("smoke", lambda: smoke(worker, scale, report, deadline))
        report.put("setting", best_setting(report.known["smoke"]))
        print(f"the setting from here on: {report.known['setting']}", flush=True)
        report.carry_out("tests", lambda: tests_and_compiler(options.out, scale, report, deadline))
        report.carry_out("rates", lambda: rates(worker, scale, report, str(options.out / "gpu.json"), deadline))
    print(f"== {time.strftime('%T')} done: {json.dumps(report.known['seconds'])}", flush=True)
    return 0 if all(went_well(report.known).values()) else 1


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/first.sh", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="where the files go")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny network and few steps: a rehearsal")
    parser.add_argument("--seconds", type=float, default=WHOLE, help="for everything together")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--spoil", metavar="TEXT", help="cases whose names hold it fail on purpose: a rehearsal")
    return parser


def went_well(known: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each part succeeded."""
    tests = known["tests"]
    return {
        "versions": "error" not in known["versions"],
        "smoke": "error" not in known["smoke"] and all(each["works"] for each in known["smoke"].values()),
        "tests": tests.get("exit_code") == 0,
        "compiled": known.get("compiled", {}).get("works", False),
        "rates": known["rates"].get("failed") == 0,
    }


def versions(worker: Worker, scale: Scale, deadline: float) -> dict[str, Any]:
    """The versions of Python, torch, CUDA, the driver and the GPU."""
    answer = worker.ask(surroundings, limit=min(scale.limit(VERSIONS), deadline - time.monotonic()))
    found: dict[str, Any] = {**(answer.value or {"error": answer.error}), "nvidia_smi": nvidia_smi()}
    print(json.dumps(found), flush=True)
    return found


def nvidia_smi() -> str:
    """A line per GPU from nvidia-smi, or why there is none."""
    fields = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"none: {error}"
    return (done.stdout or done.stderr).strip()


def smoke(worker: Worker, scale: Scale, report: Report, deadline: float) -> dict[str, Any]:
    """Forty steps of ResNet-18 with every value of gpu.capture."""
    found: dict[str, Any] = {}
    for capture, variant in SMOKE_VARIANTS.items():
        case = shortened(make_case(scale, "resnet18", 128, variant), SMOKE_STEPS)
        found[capture] = run_case(worker, case, min(scale.limit(SMOKE), deadline - time.monotonic()))
        report.put("smoke", found)
    return found


def shortened(case: Case, steps: int) -> Case:
    """The case with two intervals of ``steps`` steps, of which the second is measured."""
    return replace(case, lap_steps=steps, laps=1, settings=(*case.settings, f"log.every_steps={steps}"))


def run_case(worker: Worker, case: Case, limit: float) -> dict[str, Any]:
    """Runs ``case`` in ``worker``; prints and returns the result."""
    worker.begin(measure, case)
    return take_result(worker, case, limit)


def take_result(worker: Worker, case: Case, limit: float) -> dict[str, Any]:
    """Waits for the run that ``worker`` has started; prints and returns its result."""
    answer = worker.answer(limit)
    found: dict[str, Any] = {"case": case.name, "steps": case.steps, "seconds": round(answer.seconds, 1)}
    if answer.error is None:
        loss = answer.value["loss"]
        found |= {"works": loss is not None and math.isfinite(loss), "loss": loss, "rates": answer.value["rates"]}
        found["peak_memory_bytes"] = answer.value["peak_memory_bytes"]
    else:
        found |= {"works": False, "error": answer.error, "details": answer.details}
    result = f"works, loss {found['loss']:.4f}" if found["works"] else f"does not work: {found.get('error', 'no loss')}"
    print(f"{case.name}: {result} ({answer.seconds:.1f} s)", flush=True)
    return found


def best_setting(smoked: Mapping[str, Any]) -> str:
    """The first value of gpu.capture that works, fastest first; ``false`` if none does."""
    works = [capture for capture in BEST_FIRST if smoked.get(capture, {}).get("works")]
    return f"gpu.capture={works[0] if works else 'false'}"


def tests_and_compiler(out: Path, scale: Scale, report: Report, deadline: float) -> dict[str, Any]:
    """Runs the GPU tests, and concurrently compiles ResNet-18 (forty steps) and what the rates will need: the time of
    compilation does not count, and its results are cached on disk."""
    until = min(time.monotonic() + scale.limit(TESTS), deadline)
    cases = [shortened(make_case(scale, "resnet18", 128, COMPILED), SMOKE_STEPS)]
    if not scale.quick:
        ahead = [make_case(scale, "resnet50", 128, name) for name in ("bp compiled captured", COMPILED)]
        cases += [shortened(case, AHEAD_STEPS) for case in ahead]
    workers = [Worker() for _ in cases]
    try:
        for worker, case in zip(workers, cases, strict=True):
            worker.begin(measure, case)
        found = gpu_tests(out / "gpu-tests.log", 1 if scale.quick else 6, until)
        print(f"tests: {json.dumps(found)}", flush=True)
        compiled = [take_result(*each, until - time.monotonic()) for each in zip(workers, cases, strict=True)]
        report.put("compiled", compiled[0])
        report.put("compiled_ahead", compiled[1:])
    finally:
        for worker in workers:
            worker.stop()
    return found


def gpu_tests(log: Path, workers: int, until: float, tests: str = "tests/gpu") -> dict[str, Any]:
    """Runs the tests in parallel; ``log`` shows each failure at once. Interrupts them at ``until``."""
    argv = [
        "-n",
        str(workers),
        "-v",
        "--tb=short",
        "--timeout=60",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.gpu.at_once",
        tests,
    ]
    with log.open("w") as file:
        started = subprocess.Popen(
            [sys.executable, "-u", "-m", "pytest", *argv], stdout=file, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            started.wait(max(until - time.monotonic() - REPORT_SECONDS, 1))
        except subprocess.TimeoutExpired:
            started.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                started.wait(REPORT_SECONDS)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
            code = started.wait()
    return {**outcomes(log.read_text(errors="replace")), "exit_code": code, "log": log.name}


def outcomes(text: str) -> dict[str, Any]:
    """How many tests had which outcome, by the lines of ``pytest -v`` under xdist, and which failed."""
    found = re.findall(r"^\[gw\d+\] \[ *\d+%\] (\w+) (\S+)", text, re.MULTILINE)
    bad = [name for outcome, name in found if outcome in ("FAILED", "ERROR")]
    return {**Counter(outcome.lower() for outcome, _ in found), "names": bad}


def rates(worker: Worker, scale: Scale, report: Report, path: str, deadline: float) -> dict[str, Any]:
    """Images/s of ResNet-50, without the ways to capture that do not work here."""
    ledger = Ledger(path, {"device": scale.device, "quick": scale.quick}, report.known["versions"])
    broken = {
        variant
        for capture, variant in SMOKE_VARIANTS.items()
        if not report.known["smoke"].get(capture, {}).get("works")
    }
    if not report.known.get("compiled", {}).get("works"):
        broken.add(COMPILED)
    for model, batch, names, repeats in RATES:
        group: Group = tuple(make_case(scale, model, batch, name) for name in names if name not in broken)
        limit = scale.limit(COMPILED_CASE if any(case.is_compiled for case in group) else CASE)
        compare(worker, [group], 1 if scale.quick else repeats, deadline, limit, ledger)
    ledger.left += sorted(f"{name} (it did not work in forty steps)" for name in broken)
    conclude(ledger, deadline, scale.device)
    return {"measured": len(ledger.results()), "failed": len(ledger.failed), "left_out": ledger.left, "file": path}


if __name__ == "__main__":
    sys.exit(main())
