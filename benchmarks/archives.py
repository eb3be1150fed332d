"""Archives made from another one: ``few`` keeps some training images of every class, ``noisy`` gives a share of the
training images a wrong label. The test images stay as they are.

python -m benchmarks.archives few data/cifar10.npz data/cifar10-few.npz --per-class 500
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and writes the archive."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.archives", description=__doc__)
    parser.add_argument("kind", choices=["few", "noisy"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--per-class", type=int, default=500, help="few: training images of a class that stay")
    parser.add_argument("--share", type=float, default=0.4, help="noisy: share of the training labels that are wrong")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    draws = np.random.default_rng(options.seed)
    with np.load(options.source, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in ("train_x", "train_y", "test_x", "test_y")}
    if options.kind == "few":
        kept = few(arrays["train_y"], options.per_class, draws)
        arrays |= {"train_x": arrays["train_x"][kept], "train_y": arrays["train_y"][kept]}
    else:
        arrays["train_y"] = noisy(arrays["train_y"], options.share, draws)
    np.savez(options.target, **arrays)
    print(f"{options.target}: {len(arrays['train_y'])} training and {len(arrays['test_y'])} test images")
    return 0


def few(label_N: Labels, per_class: int, draws: np.random.Generator) -> npt.NDArray[np.intp]:
    """Indices of ``per_class`` images of every class, or of all that it has, in the order in which they lie."""
    members = [np.flatnonzero(label_N == label) for label in np.unique(label_N)]
    return np.sort(np.concatenate([draws.permutation(found)[:per_class] for found in members]))


def noisy(label_N: Labels, share: float, draws: np.random.Generator) -> Labels:
    """The labels, of which ``share`` are replaced by another class, each other one equally likely."""
    classes = int(label_N.max()) + 1
    wrong = draws.permutation(len(label_N))[: round(share * len(label_N))]
    changed = label_N.copy()
    changed[wrong] = (label_N[wrong] + draws.integers(1, classes, len(wrong))) % classes
    return changed


if __name__ == "__main__":
    sys.exit(main())
