"""How a run is executed. Only engines compose loops, links, data and files."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bllpipe.config import Config
from bllpipe.config.loader import check_keys
from bllpipe.config.schema import SYNCHRONOUS, TORCH_PIPELINES, TWO_STAGES
from bllpipe.errors import ConfigError
from bllpipe.topology import Placement, Topology, num_feedback_ranks
from bllpipe.utils.files import RunLock

if TYPE_CHECKING:
    from bllpipe.distributed.torchrun import RankEnvironment
    from bllpipe.training.worker import Worker

Output = Literal["auto", "live", "plain", "quiet", "json"]


class Callback(Protocol):
    """The events of a run in one process. A callback inherits from this class and overrides the events that it needs.

    ``job`` is a Job and ``store`` a JobStore of bllpipe.engines.job, which imports this module.
    """

    wraps_steps: bool = False  # whether it wraps methods of a training step, which a CUDA graph would not call

    def on_start(self, job: Any, store: Any, worker: Worker) -> None:
        """A worker of this process is built; training has not begun."""
        return None

    def on_end(self, worker: Worker) -> None:
        """The worker has posted its report."""
        return None

    def on_summary(self, run_directory: Path) -> None:
        """The run has ended without a failure; this process has written its summary.json and status.json."""
        return None

    def on_failure(self, run_directory: Path, error: BaseException) -> None:
        """The run has failed, in this process first, and its status.json says so."""
        return None

    def on_exit(self) -> None:
        """This process ends at once, because of a failure or a second signal."""
        return None

    def display(self, job: Any, store: Any) -> AbstractContextManager[object]:
        """The context in which the job trains, in the one process that prints."""
        return nullcontext()


@dataclass(frozen=True)
class Options:
    """The arguments of the command line other than the config. ``resume`` is ``auto``, ``never`` or the path of a
    checkpoint; ``accept`` names keys, and sections of keys, that may differ from those of the checkpoint; ``output`` is
    what is displayed while the run trains. A script gets the job and its store through ``on_agreed``, and its process
    continues after the run, which is the run ``number`` of that process."""

    resume: str = "never"
    run_dir: str | None = None
    accept: tuple[str, ...] = ()
    output: Output = "auto"
    on_agreed: Callable[[Any, Any], None] | None = None  # takes a Job and a JobStore, whose module imports this one
    number: int = 1
    callbacks: tuple[Callback, ...] = ()
    lock: RunLock = field(default_factory=RunLock, compare=False)  # of the run directory, in the rank that decides

    def check(self, environment: RankEnvironment | None = None) -> None:
        """Raises ConfigError for --accept in a run that does not resume, or of keys that do not exist, and for restarts
        by torchrun that would not find the run directory."""
        check_keys(self.accept)
        if environment is not None:
            environment.check_restarts(resumes=self.run_dir is not None and self.resume == "auto")
        if self.accept and self.resume == "never":
            raise ConfigError(
                f"--accept {' '.join(self.accept)} is for a run that resumes; add --resume auto, or --resume with the "
                f"path of a checkpoint"
            )


Engine = Callable[[Config, Options], int]  # returns the exit code of the process
NETWORK = "block 0"  # the actor of a network that learns end to end, wherever its stages or replicas are
NAMES = ("ranks", "threads", "sequential", "streams", "single", *SYNCHRONOUS)
# The module of an engine and its function, where these are not ``run`` in a module of the same name.
MODULES = {
    "sequential": ("in_process", "run_sequential"),
    "threads": ("in_process", "run_threads"),
    "single": ("in_process", "run_single"),
    **dict.fromkeys(TORCH_PIPELINES, ("torch_pipeline", "run")),
}
PLACEMENTS: dict[str, Placement] = {
    "gpipe": "stage",
    "1f1b": "stage",
    "interleaved": "loop",
    "zbv": "v",
    "dualpipev": "v",
    "deepspeed": "stage",
    "ddp": "replica",
}


def topology(config: Config) -> Topology:
    """The ranks of a run and their blocks. A network that learns end to end is one block without feedback, unless its
    stages or replicas are spread over ranks."""
    if config.engine in SYNCHRONOUS:
        each = 2 if config.engine in TWO_STAGES else 1
        return Topology(config.num_parts // each, num_feedback_ranks=0, placement=PLACEMENTS[config.engine])
    if config.engine != "ranks":  # a process has all shards of the blocks it holds
        return Topology(config.num_blocks, int(not config.is_end_to_end), num_shards=config.num_passes)
    replicas = config.block_replicas
    feedback_ranks = config.feedback.ranks or num_feedback_ranks(sum(replicas), len(replicas))
    if max(replicas) == 1:
        return Topology(config.num_blocks, feedback_ranks, num_shards=config.num_passes)
    return Topology(
        config.num_blocks,
        feedback_ranks,
        num_shards=config.num_shards,
        replicas=replicas,
        joins_shards=config.norm == "sync",
        order="pipeline" if config.placement == "pipeline" else "block",  # on one node ``auto`` is block
    )


def check_ranks(config: Config, found: int) -> None:
    """Raises ConfigError unless torchrun started the number of ranks of a run; for ``replicas: auto`` at least one for
    every block, and those of the feedback."""
    layout = topology(config)
    if config.replicas != "auto" or found < layout.world_size:
        layout.check_world_size(found)


def engine(name: str) -> Engine:
    """The engine called ``name``. Its module, and torch with it, is imported only now. The engine computes with torch's
    defaults, whatever settings the process has changed."""
    assert name in NAMES, "the config admits no other"
    from bllpipe.utils.tensors import torch_defaults

    module, function = MODULES.get(name, (name, "run"))
    run: Engine = getattr(importlib.import_module(f"bllpipe.engines.{module}"), function)
    return torch_defaults()(run)
