"""The books of a rank, the same for every engine: where its time goes, what it reports, what it saves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from bllpipe.config import to_mapping
from bllpipe.engines.arming import arm
from bllpipe.engines.job import Job
from bllpipe.engines.monitoring import monitored
from bllpipe.engines.taking_up import take_up
from bllpipe.run.checkpoint import CheckpointWriter
from bllpipe.run.instrument import guard, trace
from bllpipe.run.loops import Loop
from bllpipe.run.rank import Actor, RankPart
from bllpipe.run.recorder import Recorder
from bllpipe.run.spans import Clock, SpanFile, align_clock, machine_id
from bllpipe.run.timing import Metered, Stopwatch

STEADY_AFTER = 0.1  # fraction of the steps that rates leave out


def make_actor(
    job: Job, rank: int, role: str, name: str, loop: Loop, ports: list[Metered], device: torch.device
) -> Actor:
    """``loop`` with stopwatch, recorder, a look at its losses and, if the job asks for them, spans."""
    log_every = job.config.log.every_steps
    stopwatch = Stopwatch(ports, int(job.start + STEADY_AFTER * (job.plan.last_step - job.start)))
    place = {"rank": rank, "role": role, "actor": name}
    recorder = Recorder(place, job.directory, job.store, stopwatch, log_every)
    return with_spans(job, guard(Actor(loop, stopwatch, recorder), at_lines=device.type != "cpu"))


def make_part(job: Job, rank: int, actors: list[Actor]) -> RankPart:
    """A rank with its actors, which take up what the checkpoint has of them, and its share of every checkpoint."""
    take_up(job, rank, actors)
    settings, num_ranks = job.config.checkpoint, job.topology.world_size
    writer = CheckpointWriter(
        job.directory.checkpoints, job.store, num_ranks, job.attempt, settings.keep, settings.if_unwritable
    )
    facts = {"config": to_mapping(job.config)}
    part = monitored(job, RankPart(rank, job.topology.role(rank), actors, writer, facts, span_file(job, rank, actors)))
    return arm(part, job.faults) if job.faults else part


def with_spans(job: Job, actor: Actor) -> Actor:
    """The actor, traced if the job asks for it."""
    settings = job.config.trace
    window = range(settings.first_step, settings.first_step + settings.num_steps)
    return trace(actor, window) if window else actor


def span_file(job: Job, rank: int, actors: Sequence[Actor]) -> SpanFile | None:
    """Where the spans of a rank go. Ranks in processes of their own agree on a clock: all of them come here."""
    tracks, clock = [actor.track for actor in actors if actor.track is not None], Clock()
    if not tracks:
        return None
    if dist.is_initialized():
        clock = align_clock(job.store, rank, job.topology.world_size, machine_id())
    header = {"rank": rank, "role": job.topology.role(rank), **clock.to_json()}
    return SpanFile(job.directory, header, tracks)
