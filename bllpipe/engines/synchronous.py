"""A rank of a synchronous engine, from its data to the summary, and the part of the network that it trains: what
pipelines and data parallelism have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bllpipe.config import Config
from bllpipe.data.base import ImageSet
from bllpipe.distributed.process_group import World, close_group, open_group
from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.engines import NETWORK, Options, topology
from bllpipe.engines.build import make_actor, make_worker
from bllpipe.engines.devices import Machine, RankDevices, compare_devices, set_up
from bllpipe.engines.job import Job, JobStore
from bllpipe.engines.ranks import agree_in_world, run_process
from bllpipe.engines.runner import is_complete, report_complete, train
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Outcome
from bllpipe.learn.memory_format import as_channels_last, uses_channels_last
from bllpipe.learn.optimizer import Learner
from bllpipe.models.units import Segment
from bllpipe.topology import Topology
from bllpipe.training.loops import Loop
from bllpipe.training.timing import Metered
from bllpipe.training.watchdog import Watchdog
from bllpipe.training.worker import Worker


@dataclass(frozen=True)
class RankContext:
    """A rank of a job, the store of the job, its device, and the images if the rank has read them already."""

    job: Job
    store: JobStore
    rank: int
    device: torch.device
    images: ImageSet | None


# Builds the loop of a rank, and what its stopwatch counts as waiting; called when the process group is open.
Build = Callable[[RankContext], tuple[Loop, list[Metered]]]


def run_synchronous(config: Config, options: Options, build: Build) -> int:
    """Runs this process's rank of the job. It returns only in a script."""
    return run_process(
        config, options, lambda found, world, watchdog: _run_in_world(found, options, world, watchdog, build)
    )


def _run_in_world(config: Config, options: Options, world: World, watchdog: Watchdog, build: Build) -> None:
    rank, environment = world.environment.rank, world.environment
    device = own_device(config, topology(config), environment)
    set_up(config, device)
    job, store, images = agree_in_world(config, options, world, watchdog)
    if is_complete(job):
        return report_complete(job) if rank == 0 else None
    compare_devices(rank, device.type, world.store)
    open_group(world, use_nccl=device.type == "cuda")
    worker = make_rank(RankContext(job, store, rank, device, images), build)
    watchdog.watch([worker])
    train(job, store, worker)
    close_group()


def own_device(config: Config, layout: Topology, environment: RankEnvironment) -> torch.device:
    """The device of this rank; ConfigError when ranks would have to share a GPU, which NCCL refuses."""
    devices = RankDevices(config, layout, environment, Machine.found())
    device = devices.device()
    if device.type == "cuda" and not devices.has_distinct_gpus():
        raise ConfigError(
            f"engine {config.engine} needs a GPU a rank, but {layout.num_blocks} ranks find "
            f"{devices.machine.gpus} on this machine; use --set device=cpu, or fewer blocks"
        )
    return device


def make_rank(context: RankContext, build: Build) -> Worker:
    """The rank with its one actor, its metrics and its checkpoints."""
    job, store, rank = context.job, context.store, context.rank
    loop, waits = build(context)
    shown = NETWORK if rank in job.topology.tested_ranks else job.topology.role(rank)
    return make_worker(job, store, rank, [make_actor(job, store, rank, shown, shown, loop, waits, context.device)])


class StageTrainer:
    """Segments that are trained together. Names are those of the whole network under ``model.``, as in blocks, so that
    a checkpoint fits every engine.

    ``add_up`` sums a scalar over the ranks that hold the other parameters: what is clipped is the gradient norm of the
    whole network.
    """

    def __init__(
        self, segments: Sequence[Segment], config: Config, total_steps: int, add_up: Callable[[Tensor], Tensor]
    ) -> None:
        for segment in segments:
            if not list(segment.parameters()):
                raise ConfigError(f"the stage that ends with {segment.last_unit} has no parameters; cut somewhere else")
            if not any(parameter.requires_grad for parameter in segment.parameters()):
                raise ConfigError(
                    f"the stage that ends with {segment.last_unit} has nothing to train: all of its parameters are "
                    f"frozen; let some of them require gradients, or cut somewhere else"
                )

        def norm(gradients: Sequence[Tensor]) -> Tensor:
            return add_up(nn.utils.get_total_norm(gradients).square()).sqrt()

        self.segments, self.config = segments, config
        self.learner = Learner([("model", segment) for segment in segments], config, total_steps, norm)
        self.channels_last = uses_channels_last(config, self.learner.device)

    def mode(self, train: bool) -> None:
        """Training or evaluation mode, for all segments."""
        for segment in self.segments:
            segment.train(train)

    def laid_out(self, x: Tensor) -> Tensor:
        """Images or activations in the memory format of the convolutions of this run."""
        return as_channels_last(x) if self.channels_last else x

    def zero_grad(self) -> None:
        """Clears the gradients of the step before."""
        self.learner.optimizer.zero_grad()

    def step(self, step: int) -> float:
        """The update of training step ``step``; returns the learning rate."""
        return self.learner.step(step)

    def loss(self, scores_BK: Tensor, label_B: Tensor) -> Tensor:
        """Cross-entropy, nats, mean over its images: a batch, a microbatch or a replica's part of a batch."""
        return cross_entropy(scores_BK.float(), label_B, label_smoothing=self.config.objective.label_smoothing)

    @torch.no_grad()
    def outcome(self, scores_BK: Tensor, label_B: Tensor, loss: Tensor, lr: float = 0.0) -> Outcome:
        """The metrics of a batch."""
        return Outcome({"pred": loss.detach()}, (scores_BK.argmax(dim=1) == label_B).sum(), lr)
