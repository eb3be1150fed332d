"""The numbers of the paper's Table 1, and the settings of every method, data set and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.trials import Trial
from bllpipe.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"

# Test accuracy in %, mean and deviation of 3 runs, as the paper's Table 1 gives them.
PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "fashion_mnist": {"bp": (93.4, 0.60), "fa": (86.6, 0.70), "predsim": (94.2, 0.20), "bll": (94.1, 0.24)},
    "cifar10": {"bp": (94.8, 0.25), "fa": (62.5, 0.40), "predsim": (92.1, 0.20), "bll": (94.6, 0.17)},
    "cifar100": {"bp": (77.8, 0.21), "predsim": (71.7, 0.76), "bll": (77.9, 0.10)},
}
DATA_TITLES = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
METHOD_TITLES = {"bp": "BP", "fa": "FA", "predsim": "Pred-Sim", "dgl": "DGL", "bll": "BLL"}

# The settings of each method.
METHODS: dict[str, dict[str, Any]] = {
    "bp": {"method": "bp", "engine": "single"},
    "fa": {"method": "fa", "engine": "single"},
    "usf": {"method": "usf", "engine": "single"},
    "dfa": {"method": "dfa", "engine": "single"},
    "predsim": {"method": "predsim", "engine": "sequential"},
    "dgl": {"method": "dgl", "engine": "sequential"},
    "bll": {"method": "bll", "engine": "sequential"},
}
DEFAULT_METHODS = ("bp", "fa", "predsim", "dgl", "bll")

# The small size is the same comparison with a network that two cores can train within the hour: ResNet-18 of width 16
# whose stem halves the images. Every method has the best of the learning rates that were tried with it for two epochs
# (benchmarks/questions/rates.yaml); the paper's size has one recipe for all.
SMALL: dict[str, Any] = {
    "model.stem": "half",
    "objective.head_features": 1024,
    "objective.head_scale": False,  # as the results were measured
    "epochs": 4,
}
SMALL_RATES = {"bp": 0.4, "fa": 0.03, "predsim": 1.0, "dgl": 0.1, "bll": 0.1}
SIZES: dict[str, dict[str, tuple[str, Mapping[str, Any]]]] = {
    "small": {"cifar10": ("cifar10_small.yaml", SMALL)},
    "paper": {data: (f"{data}_resnet50.yaml", {}) for data in PAPER},
}


def table_trials(
    size: str,
    data: Sequence[str] | None,
    methods: Sequence[str],
    seeds: Sequence[int],
    data_path: str | None = None,
    engine: str | None = None,
) -> list[Trial]:
    """Every combination, all methods of the first seed first; ``engine`` is for the methods of local learning."""
    for name in data or ():
        if name not in SIZES[size]:
            raise ConfigError(f"--size {size} has no {name}; use --data {' '.join(SIZES[size])}, or another --size")
    names = data or list(SIZES[size])
    path = {} if data_path is None else {"data.path": data_path}
    return [
        _trial(size, name, method, seed, {**_of_method(method, engine), **_rate(size, method), **path})
        for seed in seeds
        for name in names
        for method in methods
    ]


def _trial(size: str, data: str, method: str, seed: int, overrides: Mapping[str, Any]) -> Trial:
    file, of_size = SIZES[size][data]
    labels = {"method": method, "data": data, "size": size}
    return Trial(f"{size}-{data}-{method}-s{seed}", CONFIGS / file, {**of_size, **overrides}, seed, labels)


def _rate(size: str, method: str) -> dict[str, Any]:
    return {"optimizer.lr": SMALL_RATES[method]} if size == "small" and method in SMALL_RATES else {}


def _of_method(method: str, engine: str | None) -> dict[str, Any]:
    settings = METHODS[method]
    return {**settings, "engine": engine} if engine and settings["engine"] != "single" else dict(settings)
