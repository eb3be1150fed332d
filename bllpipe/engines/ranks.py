"""Engine ``ranks``: a process for every replica of a block and one for the feedback, started by torchrun.

Also the process of a rank for all engines of several processes: its world, its watchdog, and its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from bllpipe.config import Config
from bllpipe.config.fields import NEVER
from bllpipe.data.base import ImageSet
from bllpipe.data.registry import load_images, load_labels
from bllpipe.distributed.process_group import (
    World,
    close_group,
    open_edges,
    open_group,
    open_replica_groups,
    receive_from,
    send_to,
)
from bllpipe.distributed.process_links import ProcessLinks
from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.engines import Options, topology
from bllpipe.engines.build import JobBuilder, build_job_segment
from bllpipe.engines.devices import Machine, RankDevices, put_back, set_up
from bllpipe.engines.failure import enter, fail, leave
from bllpipe.engines.job import Job, JobStore, agree
from bllpipe.engines.ports import PortWrapper, identity, rounds_of
from bllpipe.engines.runner import is_complete, prepare_process, report_complete, train
from bllpipe.engines.seats import agree_seats, is_open
from bllpipe.engines.sharding import Sharding
from bllpipe.errors import ConfigError
from bllpipe.topology import Topology
from bllpipe.training.stopping import StopAgreement
from bllpipe.training.watchdog import Watchdog
from bllpipe.utils.console import warn
from bllpipe.utils.tensors import plain

# A rank that waits for one that hangs waits longer than its watchdogs, which name that rank.
GRACE_SECONDS = 5.0
# Runs this rank of a job, from its data to its summary, with the config that all ranks have agreed on.
RunRank = Callable[[Config, World, Watchdog], None]


def run(config: Config, options: Options, wrap_port: PortWrapper = identity) -> int:
    """Runs this process's rank of the job. It returns only in a script."""
    return run_process(
        config, options, lambda found, world, watchdog: run_in_world(found, options, world, watchdog, wrap_port)
    )


def run_in_world(
    config: Config, options: Options, world: World, watchdog: Watchdog, wrap_port: PortWrapper = identity
) -> None:
    """Runs one rank of a job from its data to its summary; opens the process group and closes it again."""
    rank, layout = world.environment.rank, topology(config)
    device = placed(RankDevices(config, layout, world.environment, Machine.found()))
    set_up(config, device)
    job, store, images = agree_in_world(config, options, world, watchdog)
    if is_complete(job):
        return report_complete(job) if rank == 0 else None
    # only now, as the first rank may have downloaded them
    labels = load_labels(config.data, config.seed) if layout.is_feedback(rank) else None
    links, group = open_links(job, world, device), open_replica_group(job.topology, rank)
    sharding = sharding_of(job, rank, group, device)
    segment = None if labels else build_job_segment(job, store, layout.block_of(rank), device, sharding=sharding)
    builder = JobBuilder(job, store, links, wrap_port, True, links.has_nccl, group, sharding)
    if labels:
        worker = builder.feedback_worker(rank, labels, device)
        worker.all_weights = FeedbackWeights(layout, rank, store)
    else:
        assert segment is not None
        if images is None and layout.block_of(rank) == 0:  # another replica of the first block
            images = load_images(config.data, config.seed)
        worker = builder.block_worker(rank, segment, device, images)
    watchdog.watch([worker])
    links.agree()
    train(job, store, worker, after_rounds=lambda: links.end(partial(rounds_of, job)))
    links.finish()
    close_group()


def agree_in_world(
    config: Config, options: Options, world: World, watchdog: Watchdog
) -> tuple[Job, JobStore, ImageSet | None]:
    """The job that this rank agrees on with the others, its store, and the images, which rank 0 reads."""
    images = load_images(config.data, config.seed) if world.environment.rank == 0 else None
    store = JobStore(world.store)
    spec = images.spec if images else None
    job = agree(config, options, store, world.job_store, spec, world.attempt, watchdog.stop.agreement)
    return job, store, images


def placed(devices: RankDevices) -> torch.device:
    """The device of this rank. The first rank also warns if blocks share a GPU."""
    device = devices.device()
    devices.check_backends()
    if devices.environment.rank == 0 and (text := devices.sharing_warning()):
        warn(text)
    return device


def open_links(job: Job, world: World, device: torch.device) -> ProcessLinks:
    """Opens the process group and all edges; all ranks wait for each other here."""
    machine = Machine.found()
    backends = RankDevices(job.config, job.topology, world.environment, machine).agreed_backends(world.store)
    # the feedback may be alone on a machine without a GPU, where NCCL cannot be opened: none of its edges needs it
    open_group(world, use_nccl="nccl" in backends.values() and machine.gpus > 0)
    groups = open_edges(job.topology.edges(), lambda edge: backends[edge.kind], device)
    patience = job.config.backend.timeout_seconds + GRACE_SECONDS
    settings = replace(job.config.backend, timeout_seconds=patience)
    return ProcessLinks(groups, backends, settings, device, world.store)


def open_replica_group(layout: Topology, rank: int) -> Any:
    """The group of the replicas of the block of ``rank``; None if there is one, and for the feedback."""
    blocks = [layout.ranks_of(block) for block in range(layout.num_blocks)]
    groups = open_replica_groups(ranks for ranks in blocks if len(ranks) > 1)
    return next((group for ranks, group in groups.items() if rank in ranks), None)


def sharding_of(job: Job, rank: int, group: Any, device: torch.device) -> Sharding | None:
    """The sharding of the block of ``rank`` over the replicas in ``group``; None for a block with one replica, and for
    the feedback. Raises ConfigError on a GPU."""
    if job.config.sharding == "none" or group is None:
        return None
    if device.type != "cpu":
        raise ConfigError(
            f"sharding is fsdp, which was tried on CPUs alone, but rank {rank} has a GPU; use --set device=cpu, or "
            f"--set sharding=none"
        )
    block = job.topology.block_of(rank)
    others = [other for other in job.topology.ranks_of(block) if other != rank]
    return Sharding(f"slices of block {block}", others, group)


@dataclass(frozen=True)
class FeedbackWeights:
    """The weights of all feedback loops, for one digest whatever the number of feedback ranks: the first of these
    ranks receives those of the others, once a run."""

    layout: Topology
    rank: int
    store: JobStore

    def __call__(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All of them in the first feedback rank, the ``own`` ones in any other."""
        first, *others = self.layout.feedback_ranks
        found = {name: plain(own[name]) for name in sorted(own)}
        if self.rank == first:
            for other in others:
                for name, dtype, shape in json.loads(self.store.get(f"feedback/{other}")):
                    found[name] = receive_from(other, torch.empty(shape, dtype=getattr(torch, dtype)))
            return found
        layout = [(name, str(each.dtype).removeprefix("torch."), list(each.shape)) for name, each in found.items()]
        self.store.post("feedback", self.rank, layout)
        for tensor in found.values():
            send_to(first, tensor)
        return found


def run_process(config: Config, options: Options, run_rank: RunRank) -> int:
    """Calls ``run_rank`` in its world. It returns only in a script: ending the process is faster than closing torch."""
    environment = RankEnvironment.read()
    assert environment is not None, "the launcher starts this engine under torchrun only"
    with put_back(config):
        prepare_process(config, environment.rank)
        world = enter(environment, config.backend.timeout_seconds, options.number)
        try:
            config = agree_seats(config, options, world)
            with watchdog(config, options, world) as watching:
                run_rank(config, world, watching)
            options.lock.release()
        except BaseException as error:
            role = "not placed yet" if is_open(config) else topology(config).role(environment.rank)
            fail(error, world, environment.rank, role, options.callbacks)
        if options.on_agreed is None:
            leave(0)
    return 0


def watchdog(config: Config, options: Options, world: World) -> Watchdog:
    """The watchdog of this rank, with its own connection to the store."""
    layout, own_world = topology(config), world.another_connection()
    roles = [layout.role(rank) for rank in range(layout.world_size)]

    def fail_because(error: BaseException, rank: int) -> NoReturn:
        fail(error, own_world, rank, roles[rank], options.callbacks)

    leave_at_once = partial(leave, callbacks=options.callbacks)
    timeout = config.backend.timeout_seconds
    stop = StopAgreement(saves=config.checkpoint.every_steps != NEVER)
    return Watchdog(own_world.store, world.environment.rank, roles, stop, timeout, fail_because, leave_at_once)
