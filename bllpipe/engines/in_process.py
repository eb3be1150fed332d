"""A whole job inside one process, and the engines that are nothing else.

sequential  one thread, the blocks one after another; the reference for all others
threads     a thread for every block and every feedback loop
single      the whole network, learning end to end; what blocks are compared with
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import TypeVar

import torch
import torch.distributed as dist

from bllpipe.config import Config
from bllpipe.config.schema import NEVER
from bllpipe.data.base import ImageSet
from bllpipe.data.registry import load_images, load_labels
from bllpipe.distributed.cuda_streams import streams_on
from bllpipe.distributed.local_links import LocalWires
from bllpipe.engines import Options
from bllpipe.engines.build import JobBuilder, build_segment, report_unused
from bllpipe.engines.devices import Machine, one_device, put_back, set_up
from bllpipe.engines.failure import cause_of, report_failure
from bllpipe.engines.job import Job, agree
from bllpipe.engines.ports import PortWrapper, Wires, identity, ring_wires
from bllpipe.engines.runner import (
    displays,
    finish,
    is_complete,
    post_worker_report,
    prepare_process,
    report_complete,
    run_actors,
)
from bllpipe.messages import Store
from bllpipe.training.run_schedule import StopAgreement
from bllpipe.training.watchdog import Watchdog
from bllpipe.training.worker import Worker
from bllpipe.utils.process import freeze_garbage

OwnWires = TypeVar("OwnWires", bound=Wires)
OpenWires = Callable[[Job, torch.device], OwnWires]
Execution = Callable[[Job, list[Worker], OwnWires], None]
ENDING_SECONDS = 10.0  # that threads have to end in, once all their waits are over: they hold the blocks


def run_together(
    config: Config,
    options: Options,
    execute: Execution[OwnWires],
    open_wires: OpenWires[OwnWires],
    wrap_port: PortWrapper = identity,
) -> int:
    """Builds every rank of the job here, with what ``open_wires`` gives between them, and lets ``execute`` carry out
    the itinerary; the exit code is not 0 when a signal has ended it early."""
    try:
        with put_back(config):
            return _run_here(config, options, execute, open_wires, wrap_port)
    finally:
        options.lock.release()


def _run_here(
    config: Config,
    options: Options,
    execute: Execution[OwnWires],
    open_wires: OpenWires[OwnWires],
    wrap_port: PortWrapper,
) -> int:
    prepare_process(config, rank=0)
    store: Store = dist.HashStore()  # type: ignore[assignment]  # satisfies the protocol
    try:
        ending = StopAgreement(saves=config.checkpoint.every_steps != NEVER)
        with Watchdog(store, 0, ["the only process"], ending, inf, fail=_never, leave=_never) as watcher:
            _run(config, options, store, execute, open_wires, wrap_port, watcher.ending)
        return watcher.exit_code if watcher.ending.stopped else 0
    except BaseException as error:
        report_failure(error, store, store, rank=0, role="the only process", callbacks=options.callbacks)
        raise cause_of(error) from None


def _never(*about: object) -> None:
    """Nobody is stuck alone, and an impatient signal is a KeyboardInterrupt."""


def local_wires(job: Job, device: torch.device) -> LocalWires:
    """A channel an edge, for actors that take turns or wait for each other."""
    return LocalWires(device, job.config.backend.timeout_seconds)


def _run(
    config: Config,
    options: Options,
    store: Store,
    execute: Execution[OwnWires],
    open_wires: OpenWires[OwnWires],
    wrap_port: PortWrapper,
    ending: StopAgreement,
) -> None:
    images = load_images(config.data, config.seed)
    job = agree(config, options, store, store, images.spec, attempt=0, ending=ending)
    if is_complete(job):
        return report_complete(job)
    device = one_device(config, Machine.found())
    set_up(config, device)
    wires = open_wires(job, device)
    parts = _parts(job, JobBuilder(job, wires, wrap_port), images, device)
    report_unused(job)
    freeze_garbage()
    started = time.perf_counter()
    with displays(job):
        execute(job, parts, wires)
    for part in parts:
        post_worker_report(job, part)
    finish(job, started)


def _parts(job: Job, assembly: JobBuilder, images: ImageSet, device: torch.device) -> list[Worker]:
    """All ranks of the job, the feedback last if there is one."""
    labels = load_labels(job.config.data, job.config.seed)
    segments = [build_segment(job, rank, device) for rank in job.topology.block_ranks]
    if not job.topology.has_feedback:
        return [assembly.whole_part(segments[0], device, images, labels)]
    blocks = [
        assembly.block_part(rank, segment, device, images if rank == 0 else None)
        for rank, segment in enumerate(segments)
    ]
    return [*blocks, assembly.feedback_part(labels, device)]


def run_sequential(config: Config, options: Options) -> int:
    """Trains ``config`` in this thread."""
    return run_together(config, options, take_turns, wires_in_turn)


def wires_in_turn(job: Job, device: torch.device) -> Wires:
    """On a GPU what is sent stays where it is put, as its kernels like it, and a captured step finds it there."""
    return ring_wires(streams_on, job, device) if device.type == "cuda" else local_wires(job, device)


def take_turns(job: Job, parts: list[Worker], wires: Wires) -> None:
    """In every round the lanes go first, as the blocks need their targets; then the blocks from front to back."""
    blocks = job.topology.num_blocks
    for entry in job.steps("all"):
        for part in (*parts[blocks:], *parts[:blocks]):
            for actor in part.actors:
                part.run_round(actor, entry)


def run_threads(config: Config, options: Options, wrap_port: PortWrapper = identity) -> int:
    """Trains ``config`` in a thread for every actor."""
    return run_together(config, options, all_at_once, local_wires, wrap_port)


def all_at_once(job: Job, parts: list[Worker], wires: LocalWires) -> None:
    """Starts every actor and waits for all; the first error ends every wait and is raised."""
    run_actors(job, parts, on_error=wires.close, patience=ENDING_SECONDS)


def run_single(config: Config, options: Options) -> int:
    """Trains ``config`` in this thread."""
    return run_together(config, options, take_turns, local_wires)
