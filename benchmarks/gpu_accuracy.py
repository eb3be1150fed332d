"""The runs of the accuracy benchmark: what each side learns with, and what a worker does for one of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu_cases import BLL, CUTS, HEAD, OF_MODEL
from benchmarks.gpu_runs import complete, read_lines, start_afresh
from bllpipe.config import load_config
from bllpipe.utils.process import peak_memory_bytes

RATE = 0.2  # the peak of BP and BLL: strided heads bear what BP bears
PROBE_LINES = 3


@dataclass(frozen=True)
class Recipe:
    """What one side learns with: its peak rate and its own settings; ``note`` says it in words."""

    side: str
    note: str
    lr: float
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One training run."""

    model: str
    recipe: Recipe
    blocks: int
    seed: int

    @property
    def is_local(self) -> bool:
        return self.recipe.side != "bp"

    @property
    def name(self) -> str:
        blocks = f" {self.blocks} blocks" if self.is_local else ""
        return f"{self.model} {self.recipe.side}{blocks} s{self.seed}"

    def settings(self, capture: str) -> tuple[str, ...]:
        own = (
            f"model.name={self.model}",
            f"blocks={CUTS[self.model, self.blocks]}",
            f"seed={self.seed}",
            f"gpu.capture={capture}",
        )
        heads = OF_MODEL[self.model] if self.is_local else ()
        return (*own, *heads, *self.recipe.settings, f"optimizer.lr={self.recipe.lr}")


@dataclass(frozen=True)
class Probe:
    """What a short run has shown: the way to capture that works, and seconds of a step, of a test, and before both."""

    capture: str
    step_seconds: float
    test_seconds: float
    begin_seconds: float


def bll_recipe(more: tuple[str, ...] = ()) -> Recipe:
    """BLL with the heads of ``OF_MODEL``. ``more`` settings come last; a rate among them is the peak rate."""
    lr = next((float(each.partition("=")[2]) for each in more if each.startswith("optimizer.lr=")), RATE)
    note = f"{' '.join((*HEAD, *more))} and a peak rate of {lr:g}, in ResNet-50 also {OF_MODEL['resnet50'][-1]}"
    return Recipe("bll", note, lr, (*BLL, *more))


def sizes_of(path: Path) -> dict[str, int]:
    """How many images and labels an .npz holds, by split."""
    with np.load(path) as archive:
        return {name: len(archive[name]) for name in archive.files}


def small_copy(path: Path, out: Path, most: int) -> Path:
    """``out``, with at most ``most`` images of each split of the .npz ``path``."""
    with np.load(path) as archive:
        np.savez(out, allow_pickle=False, **{name: archive[name][:most] for name in archive.files})
    return out


def probe(settings: Sequence[str], steps: int, folder: Path) -> dict[str, float]:
    """A run of ``steps`` steps and a test: the fields of a Probe but the way to capture."""
    start_afresh()
    began, run_dir = time.perf_counter(), folder / f"probe-{time.monotonic_ns()}"
    every = max(1, steps // PROBE_LINES)
    length = (f"steps={steps}", f"log.every_steps={every}", "evaluate.every_epochs=0")
    complete([*settings, *length], run_dir)
    whole = time.perf_counter() - began
    lines = [line for line in read_lines(run_dir) if line.get("actor", "").startswith("block")]
    batch = load_config(None, list(settings)).data.batch_size
    laps = [batch / line["images_per_second"] for line in lines if line["phase"] == "train" and line["step"] > every]
    step = median(laps)
    # a test costs no more than the forward passes of as many images; the rest was there before
    test = tested_images(settings) / batch * step
    return {
        "step_seconds": step,
        "test_seconds": test,
        "begin_seconds": max(0.0, whole - steps * step - test),
    }


def tested_images(settings: Sequence[str]) -> int:
    """How many images a test has."""
    return sizes_of(Path(str(load_config(None, list(settings)).data.path)))["test_y"]


def train(settings: Sequence[str], run_dir: Path) -> dict[str, Any]:
    """A whole run: what its summary says, and its tests."""
    start_afresh()
    summary = complete(settings, run_dir)
    kept = ("test_accuracy", "block_accuracy", "seconds", "images_per_second", "steps", "state_sha256")
    return {
        **{name: summary[name] for name in kept},
        "peak_memory_bytes": peak_memory_bytes(),
        "tests": accuracies_of(run_dir),
    }


def accuracies_of(run_dir: Path) -> list[dict[str, Any]]:
    """Every test that all blocks have finished: after which step, and the accuracy of each block."""
    lines = [line for line in read_lines(run_dir) if line["phase"] == "evaluate"]
    steps = sorted({line["step"] for line in lines})
    of_step = {
        step: sorted((line["actor"], line["accuracy"]) for line in lines if line["step"] == step) for step in steps
    }
    most = max(map(len, of_step.values()), default=0)
    return [
        {"step": step, "block_accuracy": [accuracy for _, accuracy in found]}
        for step, found in of_step.items()
        if len(found) == most
    ]


def cut_short(run_dir: Path) -> dict[str, Any]:
    """What is known of a run that did not reach its end: the accuracy of its last block in its last test."""
    tests, lines = accuracies_of(run_dir), read_lines(run_dir)
    return {
        "test_accuracy": tests[-1]["block_accuracy"][-1] if tests else None,
        "tests": tests,
        "steps": max((line["step"] for line in lines), default=0),
    }
