"""``bllpipe.train``: trains the network, data and loss of a script as the command line trains named ones. It builds a
Config from its arguments and returns the finished run.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from itertools import count
from os import PathLike
from os.path import expanduser, join
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from bllpipe.api.datasets import Data, user_data
from bllpipe.api.models import Model, UserObjective, modules_of, path_text, plain, user_model, user_objective
from bllpipe.checkpoint import find_checkpoint
from bllpipe.config import Config, parse_config
from bllpipe.config.loader import put, read_yaml
from bllpipe.config.schema import END_TO_END
from bllpipe.distributed.torchrun import RankEnvironment, die_with_agent
from bllpipe.engines import Options, engine, topology
from bllpipe.engines.job import Job, JobStore
from bllpipe.engines.runner import is_complete
from bllpipe.errors import BllpipeError, CheckpointError, ConfigError
from bllpipe.launch import SPREAD, check_start, choose_callbacks, fail_before_the_store
from bllpipe.models.registry import is_traced
from bllpipe.tools.analysis.network_file import fill, network_weights
from bllpipe.tools.analysis.run_html import run_html, short_path
from bllpipe.utils.console import warn
from bllpipe.utils.files import RunLock, read_record, refused_paths
from bllpipe.utils.tensors import require_values, torch_defaults

STARTED = count(1)  # runs of this process, the same number in every rank of a script
PLAIN = {"crop_padding": 0, "flip": False, "rotation": 0.0}  # by default a script's own images are not augmented
Network = TypeVar("Network", bound="nn.Module | list[nn.Module]")


@torch_defaults()
def train(
    model: Model | None = None,
    data: Data | None = None,
    *,
    blocks: int | str | list[int | str] | None = None,
    objective: UserObjective | None = None,
    engine: str | None = None,
    epochs: int | None = None,
    config: str | PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    run_dir: str | PathLike[str] | None = None,
    resume: str | PathLike[str] = "never",
    accept: str | Sequence[str] = (),
) -> Run:
    """Trains ``model`` in blocks that learn alone; returns what the run has left. The modules are trained in place.

    Args:
        model: any nn.Module, such as one of torchvision's, a list of modules, a function (in_channels, num_classes)
            that returns one, built under the run's seed, or a name, such as ``resnet18`` or
            ``torchvision:convnext_tiny``; None: that of the config.
        data: (train, test), each (images, labels) as tensors or a torch Dataset of (image, label); a DatasetDict of
            Hugging Face; or a name such as ``digits``. Floats [N, ...] are taken as they are; uint8 [N, C, H, W] are
            normalised, and augmented as ``data.augment`` says. None: those of the config.
        blocks: how many, or the cuts: after how many modules, or after the one of which name; or ``balanced 4``.
        objective: a function (alpha, scores, target, x) -> dict of terms, a class of modules with that forward, or
            ``bll``, ``dgl``, ``predsim``, and ``bp`` for the whole network.
        engine: ``ranks`` under torchrun; otherwise ``sequential``, ``threads``, or ``streams`` on a GPU.
        epochs: passes over the training data.
        config: a YAML file, as for ``--config``.
        settings: keys with dots and their values, as for ``--set``: ``{"optimizer.lr": 0.1}``.
        run_dir, resume, accept: as for ``--run-dir``, ``--resume`` and ``--accept``.

    Raises ConfigError, DataError, and every other BllpipeError of the command line; under torchrun an error is printed
    once and ends all ranks, with the command line's exit codes. A signal that stops the run ends the script, too, when
    the checkpoint is whole.
    """
    require_values()
    arguments = TrainArguments(objective, blocks, engine, epochs, config, settings)
    environment = RankEnvironment.read()
    if environment is not None:
        die_with_agent(environment)
    number = next(STARTED)
    try:
        hint = "use a directory, such as run_dir='runs/a'"
        directory = None if run_dir is None else path_text("run_dir", run_dir, hint)
        start = path_text("resume", resume, "use resume='auto', 'never', or the path of a checkpoint")
        keys = (accept,) if isinstance(accept, str) else tuple(accept)
        made = build_config(model, data, arguments, environment is not None)
        callbacks = choose_callbacks(made)
        lock = environment.lock() if environment else RunLock()
        options = Options(start, directory, keys, number=number, callbacks=callbacks, lock=lock)
        _check_start(made, options, environment)
    except BllpipeError as error:
        if environment is None:
            raise
        raise SystemExit(fail_before_the_store(error, environment)) from error
    return _run(made, options, environment)


def _check_start(config: Config, options: Options, environment: RankEnvironment | None) -> None:
    options.check(environment)
    if config.engine in SPREAD and environment is None:
        size, script = topology(config).world_size, "".join(sys.argv[:1]) or "SCRIPT.py"
        raise ConfigError(
            f"engine {config.engine} needs {size} processes that all run this script, but it was started as one; use "
            f"torchrun --nproc_per_node={size} {script}, or engine='threads'"
        )
    with refused_paths():
        check_start(config, environment)


def _run(config: Config, options: Options, environment: RankEnvironment | None) -> Run:
    jobs: list[tuple[Job, JobStore]] = []
    start: Callable[[Config, Options], int] = engine(config.engine)
    code = start(config, replace(options, on_agreed=lambda *job: jobs.append(job)))
    job, store = jobs[-1]
    if job.stop.stopped is not None:
        raise SystemExit(code)
    if environment is not None and not is_complete(job):
        store.get("concluded")
    directory = join(".", job.directory.path)  # or that of run_dir="./~" would be the home directory
    return Run(directory, environment.rank if environment else 0)


@dataclass(frozen=True)
class TrainArguments:
    """The arguments of a script except model and data; ``settings`` are keys with dots, as for ``--set``."""

    objective: UserObjective | None = None
    blocks: int | str | list[int | str] | None = None
    engine: str | None = None
    epochs: int | None = None
    config: str | PathLike[str] | None = None
    settings: Mapping[str, Any] | None = None


def build_config(
    model: Model | None, data: Data | None, arguments: TrainArguments, under_torchrun: bool = False
) -> Config:
    """The checked Config; model and data of the file unless the script passes its own. ConfigError or DataError.

    By default every block has a process under torchrun; otherwise all of them are in this process.
    """
    keys, objective = user_objective(arguments.objective) if arguments.objective is not None else ({}, None)
    keys["model.name"], network = user_model(model) if model is not None else (None, None)
    keys["data.name"], images = user_data(data) if data is not None else (None, None)
    mapping = _mapping(arguments, keys)
    if images is not None and isinstance(changes := mapping["data"].setdefault("augment", {}), dict):
        mapping["data"]["augment"] = {**PLAIN, **changes}
    in_one_process = "single" if mapping.get("method") in END_TO_END else "sequential"
    mapping.setdefault("engine", "ranks" if under_torchrun else in_one_process)
    config = parse_config(mapping)
    config = replace(
        config,
        model=replace(config.model, user_model=network),
        data=replace(config.data, user_data=images),
        objective=replace(config.objective, user_loss=objective),
    )
    _check_floats(config)
    return config


def _mapping(arguments: TrainArguments, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The file; over it the settings; over both ``keys`` and the other arguments, where there are any."""
    if arguments.config is not None and not isinstance(arguments.config, (str, PathLike)):
        raise ConfigError(
            f"config is a {type(arguments.config).__name__}; expected the path of a YAML file; use settings={{...}} "
            f"for keys and their values"
        )
    if arguments.settings is not None and not isinstance(arguments.settings, Mapping):
        raise ConfigError(
            f"settings is a {type(arguments.settings).__name__}; expected keys and values; use "
            f"settings={{'optimizer.lr': 0.1}}"
        )
    mapping = read_yaml(expanduser(arguments.config)) if arguments.config is not None else {}
    for key, value in (arguments.settings or {}).items():
        put(mapping, key, plain(value), "settings")
    passed = {**keys, "blocks": arguments.blocks, "engine": arguments.engine, "epochs": arguments.epochs}
    for key, value in passed.items():
        if value is not None:
            put(mapping, key, plain(value), "the arguments")
    return mapping


def _check_floats(config: Config) -> None:
    """Raises ConfigError for settings that have no effect on float images."""
    data, changes = config.data, config.data.augment
    is_augmented = changes.crop_padding or changes.flip or changes.rotation or changes.recipe != "none"
    idle = {"data.augment": is_augmented}
    idle |= {"data.mean": data.mean is not None, "data.std": data.std is not None}
    asked = [key for key, is_set in idle.items() if is_set]
    if data.user_data is not None and data.user_data.is_float and asked:
        raise ConfigError(
            f"{' and '.join(asked)} would change nothing, as float images are taken as they are; leave it out, or "
            f"pass uint8 images [N, C, H, W]"
        )


class Run:
    """A finished run in its ``directory``; ``rank`` is the rank of this process in it."""

    def __init__(self, directory: str | Path, rank: int = 0) -> None:
        self.directory, self.rank = Path(expanduser(directory)), rank

    def __repr__(self) -> str:
        return f"Run({str(short_path(self.directory))!r}, rank={self.rank})"

    def _repr_html_(self) -> str:
        """What a notebook shows: a table of the ranks, and a picture of the accuracy of every block."""
        try:
            return run_html(self.directory, self.summary)
        except BllpipeError as error:  # a notebook would show the whole traceback
            return f"<code>{escape(repr(self))}</code>: {escape(str(error))}"

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """summary.json; CheckpointError while there is none."""
        return read_record(self.directory / "summary.json")[0]

    @property
    def accuracy(self) -> float:
        """Of the whole network, the last block's scores, on the test split: 0 to 1; ConfigError without a test."""
        found = self.summary["test_accuracy"]
        if found is None:
            raise ConfigError(
                f"{self.directory} has no test accuracy, as the run was never tested; train without stop_at and "
                f"without evaluate.every_epochs=never"
            )
        return float(found)

    @property
    def block_accuracy(self) -> list[float]:
        """Of the head of every block, from front to back; empty if the run was never tested."""
        return list(self.summary["block_accuracy"])

    @property
    def ensemble_accuracy(self) -> float | None:
        """Of all heads together, the mean of their class probabilities; None unless ``evaluate.ensemble`` was true."""
        return self.summary.get("ensemble_accuracy")

    @property
    def state_sha256(self) -> str:
        """The digest of all weights of all ranks: equal for runs that ended in the same bits."""
        return str(self.summary["state_sha256"])

    def weights(self) -> dict[str, Tensor]:
        """The whole network's parameters and buffers in the newest checkpoint, by the names of its ``state_dict``."""
        found = find_checkpoint(self.directory / "checkpoints", warn)
        if found is None:
            raise CheckpointError(
                f"{self.directory} holds no checkpoint; train with this run_dir first, and without "
                f"checkpoint.every_steps=never"
            )
        return network_weights(found)

    def load(self, model: Network) -> Network:
        """Copies these weights into ``model``, which must be a network of the same form; returns it.

        A rank of several has trained its own block alone: this is how it gets the others. Raises CheckpointError, and
        copies nothing, when names, shapes or dtypes differ.
        """
        whole: Any = model if is_traced(model) else nn.Sequential(OrderedDict(modules_of(model)))  # type: ignore[arg-type]
        fill(whole, self.weights(), str(self.directory))
        return model
