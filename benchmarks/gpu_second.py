"""The second five minutes on a GPU: accuracy near the paper's size, BP and BLL for the same number of epochs.

A short probe of each side finds a value of gpu.capture that works, and the time of a step and of a test, which decide
the number of epochs of all runs of ResNet-18. Then the runs follow, the most informative first, each reported as it
ends. OUT/second.json holds the results so far; a run that exceeds its time has the accuracy of its last test there.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import NO_GPU, REHEARSAL
from benchmarks.gpu_accuracy import RATE, Probe, Recipe, Run, bll_recipe, cut_short, probe, sizes_of, small_copy, train
from benchmarks.gpu_data import make
from benchmarks.gpu_first import Report, nvidia_smi
from benchmarks.gpu_runs import surroundings
from benchmarks.gpu_worker import Answer, Worker
from benchmarks.report import table
from bllpipe.errors import BllpipeError

# Seconds. Runs of ResNet-18 may take this share of what the probes leave, those of ResNet-50 have the rest.
WHOLE, TO_THE_END, PROBE_LIMIT, SHARE = 290.0, 5.0, 45.0, 0.72
MOST_EPOCHS, LEAST_EPOCHS = 30, 2
RESNET50_SECONDS = 3.5  # a step of ResNet-50 takes about so many of ResNet-18's, unless its rate is given
EIGHT_BLOCKS_SECONDS = 1.3  # a step in eight blocks takes at most so many in four
CAPTURES = {"bp": ("true", "false"), "bll": ("true", "blocks", "false")}  # tried in this order

BP = Recipe("bp", "end to end", RATE, ("method=bp", "engine=single"))


def runs(bll: Recipe) -> list[Run]:
    """All runs, the most telling ones first."""
    pairs = [Run("resnet18", recipe, 4, seed) for seed in (0, 1) for recipe in (BP, bll)]
    eight = [Run("resnet18", bll, 8, seed) for seed in (0, 1)]
    return [*pairs, *eight, Run("resnet50", BP, 4, 0), Run("resnet50", bll, 4, 0)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all parts; the exit code is 1 if one has failed."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # an exit stops the child processes
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Worker() as worker:
        session = Session(options, worker, Path(folder), time.monotonic() + options.seconds - TO_THE_END)
        return session.carry_out()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/second.sh", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="where the files go")
    parser.add_argument("set", choices=["fashion_mnist", "cifar10"], metavar="SET", help="fashion_mnist or cifar10")
    parser.add_argument("--data", type=Path, nargs="+", default=[Path("data")], metavar="FOLDER", help="its files")
    parser.add_argument("--npz", type=Path, metavar="FILE", help="the set as an .npz that is there already")
    parser.add_argument("--capture", choices=CAPTURES["bll"], help="do not try what comes before this one")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny network, few images: a rehearsal")
    parser.add_argument("--seconds", type=float, default=WHOLE, help="for everything together")
    parser.add_argument("--epochs", type=int, help="of ResNet-18; default: what the time allows, 30 at most")
    parser.add_argument("--resnet50-rate", type=float, metavar="R", help="images/s of BP, if measured: for its epochs")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--set-bll", dest="bll", action="append", default=[], metavar="KEY=VALUE", help="for BLL alone")
    parser.add_argument("--spoil", metavar="TEXT", help="runs whose names hold it fail on purpose: a rehearsal")
    return parser


@dataclass
class Session:
    """One call, which ends at ``deadline`` of the monotonic clock."""

    options: argparse.Namespace
    worker: Worker
    folder: Path
    deadline: float

    def __post_init__(self) -> None:
        self.report = Report(self.options.out / "second.json", {"runs": []})
        self.bll = bll_recipe(tuple(self.options.bll))

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def _limit(self, seconds: float) -> float:
        """How long a part may take that takes at most ``seconds`` on a GPU. CPUs that rehearse it may be busy."""
        return self.left() if self.options.quick else min(seconds, self.left())

    def carry_out(self) -> int:
        self.report.put("recipes", {each.side: asdict(each) for each in (BP, self.bll)})
        print(f"BLL learns with {self.bll.note}", flush=True)
        try:
            self.common = self._settings()
        except (BllpipeError, OSError) as error:
            self.report.put("data", {"error": str(error)})
            print(f"no data: {error}", file=sys.stderr, flush=True)
            return 2
        found = self.worker.ask(surroundings, limit=self._limit(60))
        self.report.put("versions", {**(found.value or {"error": found.error}), "nvidia_smi": nvidia_smi()})
        self.probes = {recipe.side: self._probe(recipe) for recipe in (BP, self.bll)}
        self.report.put("probes", {side: asdict(each) for side, each in self.probes.items() if each})
        for run in runs(self.bll):
            self._train(run)
        print(show(self.report.known), flush=True)
        if self.options.device == "cpu":
            print(REHEARSAL, flush=True)
        went_well = all(each["status"] == "completed" for each in self.report.known["runs"]) and all(
            self.probes.values()
        )
        return 0 if went_well else 1

    def _settings(self) -> tuple[str, ...]:
        """What all runs share; the data are made ready for them."""
        path: Path = self.options.npz or self.folder / "data.npz"
        description = str(path) if self.options.npz else make(self.options.set, self.options.data, path)
        if self.options.quick:
            path = small_copy(path, self.folder / "small.npz", 320)
        self.sizes = sizes_of(path)
        print(description, flush=True)
        self.report.put("data", {"set": self.options.set, "found": description, "images": self.sizes})
        size = ("model.width=2", "data.batch_size=64") if self.options.quick else ("model.width=64",)
        device = (f"device={self.options.device}", f"data.path={path}")
        return (*COMMON, *OF_SET[self.options.set], *size, *device, *self.options.overrides)

    def _probe(self, recipe: Recipe) -> Probe | None:
        """How long a step and a test of ResNet-18 take, in the first way to capture that works; None if none does."""
        captures = CAPTURES[recipe.side]
        if self.options.capture in captures:
            captures = captures[captures.index(self.options.capture) :]
        for capture in captures:
            run = Run("resnet18", recipe, 4, 0)
            settings = (*self.common, *run.settings(capture), *self._spoiled(f"probe {recipe.side} {capture}"))
            steps = 4 if self.options.quick else 150
            answer = self.worker.ask(probe, settings, steps, self.folder, limit=self._limit(PROBE_LIMIT))
            name = f"probe of {recipe.side}, gpu.capture={capture}"
            print(f"{name}: {answer.error or answer.value} ({answer.seconds:.1f} s)", flush=True)
            if answer.error is None:
                found: dict[str, float] = answer.value
                return Probe(capture, **found)
            self._put_failure(name, answer)
        return None

    def _train(self, run: Run) -> None:
        """One run to its end, or until the time is over; if it fails, again with less captured."""
        epochs = self._epochs(run)
        while (found := self.probes[run.recipe.side]) is not None:
            if epochs < LEAST_EPOCHS or self.left() < found.begin_seconds:
                self.report.put("left_out", [*self.report.known.get("left_out", []), run.name])
                return print(f"{run.name}: left out, as the time was spent", flush=True)
            record = self._attempt(run, found.capture, epochs)
            self.report.put("runs", [*self.report.known["runs"], record])
            print(_line(record), flush=True)
            if record["status"] != "failed" or "NonFinite" in record["error"]:
                return None
            captures = CAPTURES[run.recipe.side]
            less = captures[captures.index(found.capture) + 1 :]
            self.probes[run.recipe.side] = replace(found, capture=less[0]) if less else None
        return None

    def _attempt(self, run: Run, capture: str, epochs: int) -> dict[str, Any]:
        """What became of a run."""
        run_dir = self.folder / f"{run.name.replace(' ', '-')}-{capture}"
        length = (f"epochs={epochs}", f"evaluate.every_epochs={max(1, epochs // 3)}")
        settings = (*self.common, *run.settings(capture), *length, *self._spoiled(f"{run.name} {capture}"))
        answer = self.worker.ask(train, settings, run_dir, limit=self.left())
        identity = {
            "run": run.name,
            "side": run.recipe.side,
            "model": run.model,
            "blocks": run.blocks,
            "seed": run.seed,
        }
        of_run = {"capture": capture, "lr": run.recipe.lr, "epochs": epochs, "wall": round(answer.seconds, 1)}
        if answer.error is None:
            return {**identity, **of_run, "status": "completed", **answer.value}
        if self.left() <= 0:
            return {**identity, **of_run, "status": "cut short", **cut_short(run_dir)}
        return {**identity, **of_run, "status": "failed", "error": answer.error, "details": answer.details}

    def _epochs(self, run: Run) -> int:
        """The same for all runs of a network, found when its first one begins."""
        epochs: dict[str, int] = self.report.known.get("epochs", {})
        if run.model not in epochs:
            epochs = {**epochs, run.model: min(self._affordable(run.model), self.options.epochs or MOST_EPOCHS)}
            self.report.put("epochs", epochs)
            print(f"{run.model}: {epochs[run.model]} epochs for each run", flush=True)
        return epochs[run.model]

    def _affordable(self, model: str) -> int:
        """How many epochs all runs of a network can have in what is left."""
        if self.options.quick:
            return LEAST_EPOCHS
        steps = self.sizes["train_x"] // BATCH
        costs = []
        for run in runs(self.bll):
            if run.model == model and (found := self.probes[run.recipe.side]):
                factor = self._factor() if model == "resnet50" else EIGHT_BLOCKS_SECONDS if run.blocks == 8 else 1.0
                costs.append((factor * cost_of(found, steps), found.begin_seconds))
        return affordable((SHARE if model == "resnet18" else 1.0) * self.left(), costs)

    def _factor(self) -> float:
        """A step of ResNet-50 over one of ResNet-18."""
        found = self.probes["bp"] or self.probes["bll"]
        known = self.options.resnet50_rate
        return RESNET50_SECONDS if known is None or found is None else BATCH / known / found.step_seconds

    def _spoiled(self, name: str) -> tuple[str, ...]:
        is_spoiled = self.options.spoil is not None and self.options.spoil in name
        return ("data.path=spoiled-on-purpose.npz",) if is_spoiled else ()

    def _put_failure(self, name: str, answer: Answer) -> None:
        failure = {"what": name, "error": answer.error, "details": answer.details}
        self.report.put("failures", [*self.report.known.get("failures", []), failure])


BATCH = 256
COMMON = (
    "model.stem=cifar",
    "data.name=npz",
    f"data.batch_size={BATCH}",
    "data.augment.flip=true",
    "data.augment.rotation=0",
    "optimizer.name=sgd",
    "optimizer.momentum=0.9",
    "optimizer.nesterov=true",
    "optimizer.weight_decay=5e-4",
    "schedule.name=onecycle",
    "schedule.peak_at=0.25",
    "precision.compute=bf16",
    "checkpoint.every_steps=never",
    "log.every_steps=100",
    "log.plain_seconds=3600",
)
OF_SET = {
    "fashion_mnist": ("data.augment.crop_padding=2", "data.mean=[0.2860]", "data.std=[0.3530]"),
    "cifar10": (
        "data.augment.crop_padding=4",
        "data.mean=[0.4914, 0.4822, 0.4465]",
        "data.std=[0.2470, 0.2435, 0.2616]",
    ),
}


def cost_of(found: Probe, steps: int) -> float:
    """Seconds of an epoch of ``steps`` steps of ResNet-18: a run has four tests at most, and six epochs or more."""
    return steps * found.step_seconds + found.test_seconds / 2


def affordable(seconds: float, costs: Sequence[tuple[float, float]]) -> int:
    """Epochs that all runs can have within ``seconds``: each takes so many an epoch, and so many to begin."""
    return max(0, int((seconds - sum(begin for _, begin in costs)) / sum(epoch for epoch, _ in costs)))


def show(known: Mapping[str, Any]) -> str:
    """A row a run."""
    rows = [
        [
            each["run"],
            each["status"],
            each["epochs"],
            f"{100 * each['test_accuracy']:.2f} %" if each.get("test_accuracy") is not None else "-",
            f"{each['images_per_second']:.0f}" if each.get("images_per_second") else "-",
            f"{each['wall']:.1f}",
        ]
        for each in known["runs"]
    ]
    left = known.get("left_out", [])
    lines = [table(["run", "", "epochs", "last block", "images/s", "seconds"], rows)]
    return "\n".join([*lines, *([f"left out, as the time was spent: {', '.join(left)}"] if left else [])])


def _line(record: Mapping[str, Any]) -> str:
    accuracy = record.get("test_accuracy")
    reached = f"{100 * accuracy:.2f} %" if accuracy is not None else record.get("error", "no test yet")
    return f"{record['run']}: {record['status']}, {reached} in {record['wall']} s"


if __name__ == "__main__":
    sys.exit(main())
