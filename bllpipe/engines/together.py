"""A whole job inside one process: what the engines ``sequential``, ``threads`` and ``streams`` have in common."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import TypeVar

import torch
import torch.distributed as dist

from bllpipe.config import Config
from bllpipe.config.keys import NEVER
from bllpipe.engines import Options
from bllpipe.engines.assembly import Assembly
from bllpipe.engines.devices import Machine, one_device
from bllpipe.engines.edges import Dress, Wires, undressed
from bllpipe.engines.failure import cause_of, report_failure
from bllpipe.engines.finish import conclude, hand_in, nothing_left, prepare_process, progress, say_nothing_left
from bllpipe.engines.gpu import set_up
from bllpipe.engines.job import Job, agree, build_segment
from bllpipe.engines.putting_back import put_back
from bllpipe.engines.taking_up import say_untaken
from bllpipe.engines.watcher import Watcher
from bllpipe.ports import Store
from bllpipe.run.data.registry import load_images, load_labels
from bllpipe.run.data.sets import ImageSet
from bllpipe.run.ending import Ending
from bllpipe.run.memory import freeze_garbage
from bllpipe.run.rank import RankPart
from bllpipe.wire.local import LocalWires

OwnWires = TypeVar("OwnWires", bound=Wires)
OpenWires = Callable[[Job, torch.device], OwnWires]
Execution = Callable[[Job, list[RankPart], OwnWires], None]


def run_together(
    config: Config,
    options: Options,
    execute: Execution[OwnWires],
    open_wires: OpenWires[OwnWires],
    dress: Dress = undressed,
) -> int:
    """Builds every rank of the job here, with what ``open_wires`` gives between them, and lets ``execute`` carry out
    the itinerary; the exit code is not 0 when a signal has ended it early."""
    with put_back(config):
        return _run_here(config, options, execute, open_wires, dress)


def _run_here(
    config: Config, options: Options, execute: Execution[OwnWires], open_wires: OpenWires[OwnWires], dress: Dress
) -> int:
    prepare_process(config, rank=0)
    store: Store = dist.HashStore()  # type: ignore[assignment]  # satisfies the protocol
    try:
        ending = Ending(saves=config.checkpoint.every_steps != NEVER)
        with Watcher(store, 0, ["the only process"], ending, inf, fail=_never, leave=_never) as watcher:
            _run(config, options, store, execute, open_wires, dress, watcher.ending)
        return watcher.exit_code if watcher.ending.stopped else 0
    except BaseException as error:
        report_failure(error, store, store, rank=0, role="the only process")
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
    dress: Dress,
    ending: Ending,
) -> None:
    images = load_images(config.data, config.seed)
    job = agree(config, options, store, store, images.spec, attempt=0, ending=ending)
    if nothing_left(job):
        return say_nothing_left(job)
    device = one_device(config, Machine.found())
    set_up(config, device)
    wires = open_wires(job, device)
    parts = _parts(job, Assembly(job, wires, dress), images, device)
    say_untaken(job)
    freeze_garbage()
    started = time.perf_counter()
    try:
        with progress(job):
            execute(job, parts, wires)
        for part in parts:
            hand_in(job, part)
    except BaseException:
        for part in parts:
            part.on_failure()
        raise
    conclude(job, started)


def _parts(job: Job, assembly: Assembly, images: ImageSet, device: torch.device) -> list[RankPart]:
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
