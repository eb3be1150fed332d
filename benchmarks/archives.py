"""Derives archives from another one: ``few`` keeps some training images of every class, ``noisy`` gives a share of the
training images a wrong label, and the test images stay as they are; ``pairs`` puts two images side by side, each
squeezed to half its width, and the classes of the two together are the class: K x K of them.

python -m benchmarks.archives few data/cifar10.npz data/cifar10-few.npz --per-class 500
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Images = npt.NDArray[np.uint8]


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and writes the archive."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.archives", description=__doc__)
    parser.add_argument("kind", choices=["few", "noisy", "pairs"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--per-class", type=int, default=500, help="few: training images of a class that stay")
    parser.add_argument("--share", type=float, default=0.4, help="noisy: share of the training labels that are wrong")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    draws = np.random.default_rng(options.seed)
    with np.load(options.source, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in ("train_x", "train_y", "test_x", "test_y")}
    arrays = changed(arrays, options, draws)
    np.savez(options.target, **arrays)
    print(f"{options.target}: {len(arrays['train_y'])} training and {len(arrays['test_y'])} test images")
    return 0


def changed(arrays: dict[str, Any], options: argparse.Namespace, draws: np.random.Generator) -> dict[str, Any]:
    """The arrays of the new archive."""
    images, labels = arrays["train_x"], arrays["train_y"]
    match options.kind:
        case "few":
            kept = few(labels, options.per_class, draws)
            return {**arrays, "train_x": images[kept], "train_y": labels[kept]}
        case "noisy":
            return {**arrays, "train_y": noisy(labels, options.share, draws)}
        case _:
            test = pairs(arrays["test_x"], arrays["test_y"], draws)
            return dict(zip(arrays, (*pairs(images, labels, draws), *test), strict=True))


def few(label_N: Labels, per_class: int, draws: np.random.Generator) -> npt.NDArray[np.intp]:
    """Indices of ``per_class`` images of every class, or of all that it has, in the order in which they lie."""
    members = [np.flatnonzero(label_N == label) for label in np.unique(label_N)]
    return np.sort(np.concatenate([draws.permutation(found)[:per_class] for found in members]))


def noisy(label_N: Labels, share: float, draws: np.random.Generator) -> Labels:
    """The labels, of which ``share`` are replaced by another class, each other one equally likely."""
    classes = int(label_N.max()) + 1
    wrong = draws.permutation(len(label_N))[: round(share * len(label_N))]
    mixed = label_N.copy()
    mixed[wrong] = (label_N[wrong] + draws.integers(1, classes, len(wrong))) % classes
    return mixed


def pairs(image_NHWC: Images, label_N: Labels, draws: np.random.Generator) -> tuple[Images, Labels]:
    """Pictures of two images each, left and right, and their labels: K times the left one's and the right one's.

    As many as there were, and as many of every pair of classes, if there are equally many of every class; every image
    is once on the left and once on the right.
    """
    classes, per_pair = int(label_N.max()) + 1, len(label_N) // (int(label_N.max()) + 1) ** 2
    left, right = (_by_class(label_N, draws).reshape(classes, classes, per_pair) for _ in range(2))
    right = right.swapaxes(0, 1)
    halves = [
        (image_NHWC[side.ravel(), :, 0::2].astype(np.uint16) + image_NHWC[side.ravel(), :, 1::2]) // 2
        for side in (left, right)
    ]
    label_P = np.repeat(np.arange(classes**2), per_pair)
    return np.concatenate(halves, axis=2).astype(np.uint8), label_P


def _by_class(label_N: Labels, draws: np.random.Generator) -> npt.NDArray[np.intp]:
    """Indices of all images, shuffled, then by class."""
    order = draws.permutation(len(label_N))
    return order[np.argsort(label_N[order], kind="stable")]


if __name__ == "__main__":
    sys.exit(main())
