"""``bllpipe.train``: a script's own network, data and loss, trained as the command line trains named ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from os import PathLike
from typing import Any

from bllpipe.config import Config
from bllpipe.engines import Options, engine, topology
from bllpipe.engines.finish import nothing_left
from bllpipe.engines.job import Job
from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.launch import SPREAD, check_start, fail_before_the_store
from bllpipe.library.data import Data
from bllpipe.library.models import Model
from bllpipe.library.objectives import OwnObjective
from bllpipe.library.results import Run
from bllpipe.library.settings import Settings, config_of
from bllpipe.library.values import path_text
from bllpipe.torch_state import torch_defaults
from bllpipe.wire.agent import follow_agent
from bllpipe.wire.environment import RankEnvironment

STARTED = count(1)  # runs of this process; every rank of a script counts alike


@torch_defaults()
def train(
    model: Model | None = None,
    data: Data | None = None,
    *,
    blocks: int | str | list[int | str] | None = None,
    objective: OwnObjective | None = None,
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
        model: an nn.Sequential, a list of modules, a function (in_channels, num_classes) that returns one, built under
            the run's seed, or a name such as ``resnet18``; None: that of the config.
        data: (train, test), each (images, labels) as tensors or a torch Dataset of (image, label); or a name such as
            ``digits``. Floats [N, ...] are taken as they are; uint8 [N, C, H, W] are normalised, and augmented as
            ``data.augment`` says. None: those of the config.
        blocks: how many, or the cuts: after how many modules, or after the one of which name; or ``balanced 4``.
        objective: a function (alpha, scores, target, x) -> dict of terms, a class of modules with that forward, or
            ``bll``, ``dgl``, ``predsim``, and ``bp`` for the whole network.
        engine: ``ranks`` under torchrun; otherwise ``sequential``, ``threads``, or ``streams`` on a GPU.
        epochs: passes over the training data.
        config: a YAML file, as for ``--config``.
        settings: keys with dots and their values, as for ``--set``: ``{"optimizer.lr": 0.1}``.
        run_dir, resume, accept: as for ``--run-dir``, ``--resume`` and ``--accept``.

    Raises ConfigError, DataError, and every other BllpipeError of the command line; under torchrun an error is said
    once and ends all ranks, with the command line's exit codes. A signal that stops the run ends the script, too, when
    the checkpoint is whole.
    """
    said = Settings(objective, blocks, engine, epochs, config, settings)
    environment = RankEnvironment.read()
    if environment is not None:
        follow_agent(environment)
    jobs: list[Job] = []
    number = next(STARTED)
    try:
        place = None if run_dir is None else path_text("run_dir", run_dir, "use a directory, such as run_dir='runs/a'")
        start = path_text("resume", resume, "use resume='auto', 'never', or the path of a checkpoint")
        keys = (accept,) if isinstance(accept, str) else tuple(accept)
        options = Options(start, place, keys, on_agreed=jobs.append, number=number)
        made = config_of(model, data, said, environment is not None)
        options.check()
        _check_ranks(made, environment)
        check_start(made, environment)
    except BllpipeError as error:
        if environment is None:
            raise
        raise SystemExit(fail_before_the_store(error, environment)) from error
    return _carry_out(made, options, jobs, environment)


def _check_ranks(config: Config, environment: RankEnvironment | None) -> None:
    if config.engine in SPREAD and environment is None:
        number, script = topology(config).world_size, sys.argv[0] or "SCRIPT.py"
        raise ConfigError(
            f"engine {config.engine} needs {number} processes that all run this script, but it was started as one; use "
            f"torchrun --nproc_per_node={number} {script}, or engine='threads'"
        )


def _carry_out(config: Config, options: Options, jobs: list[Job], environment: RankEnvironment | None) -> Run:
    start: Callable[[Config, Options], int] = engine(config.engine)
    code = start(config, options)
    job = jobs[-1]
    if job.ending.stopped is not None:
        raise SystemExit(code)
    if environment is not None and not nothing_left(job):
        job.store.get("concluded")
    return Run(job.directory.path, environment.rank if environment else 0)
