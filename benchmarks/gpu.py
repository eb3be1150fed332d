"""Images per second of backpropagation and of BLL on one GPU, in the engines as users have them.

Every case is a run of its own in this process: the network in bf16, synthetic images of CIFAR's size, augmented on the
device. The rate is that of stretches between two lines of metrics, the first ones left out; operations are those of
products and convolutions, and the limit is the GPU's bf16 peak. When the budget is spent the rest is left out, and
said so. ``--device cpu --quick`` rehearses all of it with a tiny network; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_cases import BATCHES, MODELS, VARIANTS, WARM_UP_LAPS, Case, cases
from benchmarks.gpu_meters import EnergyMeter, busy_share, kernels, operations_per_image, peak_of
from benchmarks.report import Spread, table, write
from bllpipe.config import load_config
from bllpipe.engines import Options, engine
from bllpipe.run.memory import peak_memory_bytes

BEFORE = "bp compiled"  # what the others are compared with
Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and carries it out; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU; rehearse with --device cpu --quick", file=sys.stderr)
        return 2
    deadline = time.monotonic() + options.budget
    found: dict[Case, list[dict[str, Any]]] = defaultdict(list)
    left: list[str] = []
    for repetition in range(options.repeats):
        for case in cases(options):
            if time.monotonic() > deadline:
                left.append(f"{case.name} [{repetition + 1}]")
                continue
            found[case].append(measure(case, options.device))
            if options.gaps and options.device == "cuda":
                found[case][-1]["gaps"] = gaps(case)
            rate = median(found[case][-1]["rates"])
            print(f"[{repetition + 1}/{options.repeats}] {case.name}: {rate:.1f} images/s", flush=True)
    results = [result(case, own, found) for case, own in found.items()]
    print(table(HEADS, [_row(each) for each in results]))
    if left:
        print(f"left out, as {options.budget:g} s are spent: {', '.join(left)}")
    if options.device == "cpu":
        print("a rehearsal on a CPU: these figures say nothing of a GPU")
    write(options.json, __doc__.splitlines()[0], {**vars(options), "left_out": left}, results)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny network and few steps: a rehearsal")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), metavar="B")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=1, help="all cases so many times, in turn")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds after which no case is begun")
    parser.add_argument("--gaps", action="store_true", help="profile every case for the gaps that its host leaves")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", metavar="FILE")
    return parser


def measure(case: Case, device: str) -> dict[str, Any]:
    """One run of a case: images/s of its laps, memory, and watts where they can be read."""
    meter = EnergyMeter.of_gpu() if device == "cuda" else EnergyMeter(None)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, meter.sampling():
        rates = run(case, Path(folder))
    seconds = case.laps * case.lap_steps * case.batch / median(rates)
    return {"rates": rates, "memory": peak_memory_bytes(), "watts": meter.watts(seconds)}


def run(case: Case, folder: Path) -> list[float]:
    """Images/s of every lap that counts: those of the block whose laps are slowest."""
    config = load_config(None, [*case.settings, f"steps={case.steps}"])
    with contextlib.redirect_stdout(io.StringIO()):
        engine(config.engine)(config, Options(run_dir=str(folder / "run")))
    laps: dict[str, list[float]] = defaultdict(list)
    for line in map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines()):
        if line["phase"] == "train" and line["actor"].startswith("block"):
            laps[line["actor"]].append(line["images_per_second"])
    return min((rates[WARM_UP_LAPS:] for rates in laps.values()), key=median)


def gaps(case: Case) -> float | None:
    """The share of the time in which no kernel ran, in the second half of a run of its own."""
    with tempfile.TemporaryDirectory() as folder, profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run(case, Path(folder))
        torch.cuda.synchronize()
    busy = busy_share(kernels(profiled.events() or []))
    return None if busy is None else 1 - busy


def result(case: Case, own: Sequence[Mapping[str, Any]], found: Mapping[Case, Sequence[Mapping[str, Any]]]) -> Result:
    """What is reported of a case. Ratios are medians over the repetitions."""
    rates = [median(each["rates"]) for each in own]
    before = found.get(replace(case, variant=BEFORE, settings=()), ())
    ratios = [rate / median(each["rates"]) for rate, each in zip(rates, before, strict=False)]
    operations = operations_per_image(load_config(None, [*case.settings, "device=cpu"]))
    peak = peak_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    watts = [each["watts"] for each in own if each["watts"] is not None]
    return {
        "case": case.name,
        **{name: getattr(case, name) for name in ("variant", "model", "batch", "settings", "lap_steps", "laps")},
        "images_per_second": Spread.of([rate for each in own for rate in each["rates"]]),
        "over_compiled_bp": median(ratios) if ratios else None,
        "operations_per_image": operations,
        "of_bf16_peak": median(rates) * operations / peak if peak else None,
        "peak_memory_bytes": max(each["memory"] for each in own),
        "joules_per_image": median(watts) / median(rates) if watts else None,
        "host_gaps": own[-1].get("gaps"),
    }


HEADS = ["case", "images/s", "/ compiled BP", "of bf16 peak", "GiB", "mJ/image", "host gaps"]


def _row(result: Mapping[str, Any]) -> list[object]:
    ratio, share, joules, idle = (
        result[key] for key in ("over_compiled_bp", "of_bf16_peak", "joules_per_image", "host_gaps")
    )
    return [
        result["case"],
        result["images_per_second"],
        f"{ratio:.2f}" if ratio else "-",
        f"{100 * share:.1f} %" if share else "-",
        f"{result['peak_memory_bytes'] / 2**30:.2f}",
        f"{1e3 * joules:.2f}" if joules else "-",
        f"{100 * idle:.1f} %" if idle is not None else "-",
    ]


if __name__ == "__main__":
    sys.exit(main())
