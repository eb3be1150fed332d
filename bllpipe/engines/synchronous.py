"""A rank of a synchronous engine, from its data to the summary: what pipelines and data parallelism have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bllpipe.config import Config
from bllpipe.engines import Options, topology
from bllpipe.engines.backends import compare_devices
from bllpipe.engines.books import make_actor, make_part
from bllpipe.engines.devices import Machine, distinct_gpus, rank_device
from bllpipe.engines.finish import NETWORK, nothing_left, say_nothing_left, train
from bllpipe.engines.gpu import set_up
from bllpipe.engines.job import Job, agree
from bllpipe.engines.process import take_part
from bllpipe.engines.watcher import Watcher
from bllpipe.errors import ConfigError
from bllpipe.run.data.registry import load_images
from bllpipe.run.data.sets import ImageSet
from bllpipe.run.loops import Loop
from bllpipe.run.rank import RankPart
from bllpipe.run.timing import Metered
from bllpipe.topology import Topology
from bllpipe.wire.environment import RankEnvironment
from bllpipe.wire.world import World, close_group, open_group


@dataclass(frozen=True)
class Seat:
    """What a loop is built for: a rank of a job, its device, and the images if the rank read them already."""

    job: Job
    rank: int
    device: torch.device
    images: ImageSet | None


# The loop of a rank, and what its stopwatch counts as waiting; called when the process group is open.
Build = Callable[[Seat], tuple[Loop, list[Metered]]]


def run_synchronous(config: Config, options: Options, build: Build) -> int:
    """This process's part of the job; it returns to a script alone."""
    return take_part(config, options, lambda world, watcher: _run_in_world(config, options, world, watcher, build))


def _run_in_world(config: Config, options: Options, world: World, watcher: Watcher, build: Build) -> None:
    rank, environment = world.environment.rank, world.environment
    device = own_device(config, topology(config), environment)
    set_up(config, device)
    images = load_images(config.data, config.seed) if rank == 0 else None
    spec = images.spec if images else None
    job = agree(config, options, world.store, world.job_store, spec, world.attempt, watcher.ending)
    if nothing_left(job):
        return say_nothing_left(job) if rank == 0 else None
    compare_devices(rank, device.type, world.store)
    open_group(world, use_nccl=device.type == "cuda")
    part = make_rank(Seat(job, rank, device, images), build)
    watcher.look_at([part])
    train(job, part)
    close_group()


def own_device(config: Config, layout: Topology, environment: RankEnvironment) -> torch.device:
    """The device of this rank; ConfigError when ranks would have to share a GPU, which NCCL refuses."""
    machine = Machine.found()
    device = rank_device(config, layout, environment, machine)
    if device.type == "cuda" and not distinct_gpus(config, layout, environment, machine):
        raise ConfigError(
            f"engine {config.engine} needs a GPU a rank, but {layout.num_blocks} ranks find "
            f"{machine.gpus} on this machine; use --set device=cpu, or fewer blocks"
        )
    return device


def make_rank(seat: Seat, build: Build) -> RankPart:
    """The rank with its one actor, its books and its checkpoints."""
    job, role = seat.job, seat.job.topology.role(seat.rank)
    loop, waits = build(seat)
    shown = NETWORK if seat.rank in job.topology.tested_ranks else role
    return make_part(job, seat.rank, [make_actor(job, seat.rank, shown, shown, loop, waits, seat.device)])
