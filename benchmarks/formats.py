"""Channels-last memory format and bf16 on a CPU: images a second of one thread, every combination in turns.

The network is that of ``configs/cifar10_small.yaml`` with a stem that halves the images, on synthetic images of 32x32;
all blocks compute in one process. Start it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Spread, markdown, write

CONFIG = "configs/cifar10_small.yaml"
NETWORKS = {
    "BP": ["method=bp", "engine=single"],
    "BLL, strided heads": ["objective.head=strided", "engine=sequential"],
    "BP, width 64": ["method=bp", "engine=single", "model.width=64", "data.batch_size=32"],
}
FORMATS = list(product((False, True), ("fp32", "bf16")))  # channels last, precision; the first is the base


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=40, help="training steps a run, the first tenth not counted")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    options = parser.parse_args()
    results = measure(options.repeats, options.steps)
    print(markdown(["network", *map(label, FORMATS)], rows(results)))
    print(f"median of {options.repeats} (least to most) and its ratio to the first column; torch {torch.__version__}")
    write(options.json, __doc__.splitlines()[0], vars(options), results)


def measure(repeats: int, steps: int) -> list[dict[str, Any]]:
    """Images a second of every network in every format; formats follow one another in every round."""
    rates: dict[tuple[str, tuple[bool, str]], list[float]] = {}
    for _, name, layout in product(range(repeats), NETWORKS, FORMATS):
        rates.setdefault((name, layout), []).append(run(NETWORKS[name], layout, steps))
    return [
        {"network": name, "channels_last": layout[0], "precision": layout[1], "images_per_second": Spread.of(values)}
        for (name, layout), values in rates.items()
    ]


def run(network: list[str], layout: tuple[bool, str], steps: int) -> float:
    """Images a second in the steady state of one run, in a process of its own."""
    words = [word for setting in settings(network, layout, steps) for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bllpipe.launch", "--config", CONFIG, *words, "--run-dir", folder]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        rate: float = json.loads((Path(folder) / "summary.json").read_text())["images_per_second"]
    return rate


def settings(network: list[str], layout: tuple[bool, str], steps: int) -> list[str]:
    """The overrides of ``CONFIG`` for a run."""
    channels_last, precision = layout
    return [
        *("model.stem=half", "data.name=synthetic", "data.path=null", "device=cpu", "evaluate.every_epochs=0"),
        *(f"steps={steps}", f"channels_last={channels_last}", f"precision.compute={precision}", *network),
    ]


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """A row a network: images a second in each of ``FORMATS``, with the ratio to the first."""
    lines = []
    for name in dict.fromkeys(result["network"] for result in results):
        found = [result["images_per_second"] for result in results if result["network"] == name]
        ratios = ["", *(f", {each.median / found[0].median:.2f}x" for each in found[1:])]
        lines.append([name, *(f"{each}{ratio}" for each, ratio in zip(found, ratios, strict=True))])
    return lines


def label(layout: tuple[bool, str]) -> str:
    """The name of a column."""
    return f"{layout[1]}, channels last" if layout[0] else layout[1]


if __name__ == "__main__":
    main()
