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
from bllpipe.config.fields import NEVER
from bllpipe.data.registry import load_images, load_labels
from bllpipe.distributed.cuda_streams import streams_on
from bllpipe.distributed.local_links import LocalLinks
from bllpipe.engines import Options
from bllpipe.engines.build import JobBuilder, build_job_segment, report_unused
from bllpipe.engines.devices import Machine, one_device, put_back, set_up
from bllpipe.engines.failure import cause_of, report_failure
from bllpipe.engines.job import Job, JobStore, agree
from bllpipe.engines.ports import Links, PortWrapper, identity, ring_links
from bllpipe.engines.runner import (
    displays,
    finish,
    is_complete,
    post_worker_report,
    prepare_process,
    report_complete,
    run_actors,
)
from bllpipe.engines.seats import in_one_process
from bllpipe.training.stopping import StopAgreement
from bllpipe.training.watchdog import Watchdog
from bllpipe.training.worker import Worker
from bllpipe.utils.process import freeze_garbage

OwnLinks = TypeVar("OwnLinks", bound=Links)
OpenLinks = Callable[[Job, torch.device], OwnLinks]
Execution = Callable[[Job, list[Worker], OwnLinks], None]
ENDING_SECONDS = 10.0  # for threads to end once none of them waits any more: they hold the blocks


def run_in_process(
    config: Config,
    options: Options,
    execute: Execution[OwnLinks],
    open_links: OpenLinks[OwnLinks],
    wrap_port: PortWrapper = identity,
) -> int:
    """Builds every rank of the job in this process, with the links of ``open_links`` between them; ``execute`` runs the
    schedule. The exit code is not 0 if a signal has ended the run early."""
    store = JobStore(dist.HashStore())  # type: ignore[arg-type]  # satisfies the protocol
    stop = StopAgreement(saves=config.checkpoint.every_steps != NEVER)
    try:
        with put_back(config):
            prepare_process(config, rank=0)
            try:
                with Watchdog(store, 0, ["the only process"], stop, inf, fail=_never, leave=None) as watchdog:
                    _run(config, options, store, execute, open_links, wrap_port, stop)
                return watchdog.stop.exit_code if stop.stopped else 0
            except BaseException as error:
                report_failure(error, store, store, rank=0, role="the only process", callbacks=options.callbacks)
                raise cause_of(error) from None
    finally:
        options.lock.release()


def _never(*about: object) -> None:
    """Not called: a single process waits for no other."""


def local_links(job: Job, device: torch.device) -> LocalLinks:
    """A channel an edge, for actors that take turns or wait for each other."""
    return LocalLinks(device, job.config.backend.timeout_seconds)


def _run(
    config: Config,
    options: Options,
    store: JobStore,
    execute: Execution[OwnLinks],
    open_links: OpenLinks[OwnLinks],
    wrap_port: PortWrapper,
    stop: StopAgreement,
) -> None:
    config = in_one_process(config, options, store)
    images = load_images(config.data, config.seed)
    job = agree(config, options, store, store, images.spec, attempt=0, stop=stop)
    if is_complete(job):
        return report_complete(job)
    device = one_device(config, Machine.found())
    set_up(config, device)
    links = open_links(job, device)
    builder, labels = JobBuilder(job, store, links, wrap_port), load_labels(config.data, config.seed)
    segments = [build_job_segment(job, store, rank, device) for rank in job.topology.block_ranks]
    if job.topology.num_feedback_ranks:
        workers = [
            builder.block_worker(rank, segment, device, images if rank == 0 else None)
            for rank, segment in enumerate(segments)
        ]
        workers.append(builder.feedback_worker(job.topology.feedback_ranks[0], labels, device))
    else:
        workers = [builder.network_worker(segments[0], device, images, labels)]
    report_unused(job, store)
    freeze_garbage()
    started = time.perf_counter()
    with displays(job, store):
        execute(job, workers, links)
    for worker in workers:
        post_worker_report(job, store, worker)
    finish(job, store, started)


def run_sequential(config: Config, options: Options) -> int:
    """Trains ``config`` in this thread."""
    return run_in_process(config, options, run_in_turn, links_in_turn)


def links_in_turn(job: Job, device: torch.device) -> Links:
    """On a GPU rings of static memory, in the memory format of its kernels, which captured steps read."""
    return ring_links(streams_on, job, device) if device.type == "cuda" else local_links(job, device)


def run_in_turn(job: Job, workers: list[Worker], links: Links) -> None:
    """In every round the lanes run first, as the blocks need their targets; then the blocks from first to last."""
    blocks = len(job.topology.block_ranks)
    for entry in job.steps("all"):
        for worker in (*workers[blocks:], *workers[:blocks]):
            for actor in worker.actors:
                worker.run_round(actor, entry)


def run_threads(config: Config, options: Options, wrap_port: PortWrapper = identity) -> int:
    """Trains ``config`` in a thread for every actor."""
    return run_in_process(config, options, run_concurrently, local_links, wrap_port)


def run_concurrently(job: Job, workers: list[Worker], links: LocalLinks) -> None:
    """Runs every actor in a thread and waits for all. The first error ends every wait and is raised."""
    run_actors(job, workers, on_error=links.close, patience=ENDING_SECONDS)


def run_single(config: Config, options: Options) -> int:
    """Trains ``config`` in this thread."""
    return run_in_process(config, options, run_in_turn, local_links)
