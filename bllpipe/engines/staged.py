"""A rank of a synchronous pipeline, whoever plays its schedule: its stages, what they are given, and the way of a test
batch through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from bllpipe.engines.bubbles import TimedSchedule
from bllpipe.engines.edges import image_port
from bllpipe.engines.job import Job, build_segment, shape_of
from bllpipe.engines.share import Share
from bllpipe.engines.stages import Hop, Schedule, StageLoop, StageModule
from bllpipe.engines.synchronous import Seat
from bllpipe.ports import Alpha, Receiver, Target
from bllpipe.run.data.registry import load_labels
from bllpipe.run.data.source import LabelSource
from bllpipe.run.loops import Loop
from bllpipe.run.timing import Metered
from bllpipe.wire.world import add_up, receive_from, send_to

# The schedule for the stages of a rank, and the objects that compute in it: what a stopwatch and a timeline look at.
MakeSchedule = Callable[[Seat, Share, Sequence[StageModule]], tuple[Schedule, Sequence[object]]]


def build_stage_loop(seat: Seat, make_schedule: MakeSchedule) -> tuple[Loop, list[Metered]]:
    """The loop of a rank; all ranks build theirs at the same time, as each stage learns from the one before what it
    is given."""
    job, config, device = seat.job, seat.job.config, seat.device
    numbers = job.topology.stages_of(seat.rank)
    segments = [build_segment(job, number, device, "stage") for number in numbers]
    share = Share(segments, config, job.plan.total_steps, add_up)
    modules = [
        StageModule(segment, share.learner.autocast(), wire_format(job, number), share.channels_last)
        for number, segment in zip(numbers, segments, strict=True)
    ]
    schedule, stages = make_schedule(seat, share, modules)
    timed = TimedSchedule(schedule, stages if device.type == "cpu" else (), sent_bytes(job, seat.rank))
    hops = [make_hop(job, module, number, device) for number, module in zip(numbers, modules, strict=True)]
    return StageLoop(share, timed, hops, _images(seat), _labels(seat), stages), [timed]


def sent_bytes(job: Job, rank: int) -> int:
    """What a rank sends in a training step: its outputs to stages behind, its inputs' gradients to those before."""
    rank_of, total = job.topology.rank_of, 0
    for number in range(job.topology.num_stages - 1):
        ends = {rank_of(number), rank_of(number + 1)}
        if rank in ends and len(ends) == 2:
            total += job.config.data.batch_size * prod(shape_of(job, number)) * wire_format(job, number).itemsize
    return total


def _images(seat: Seat) -> Receiver[Alpha] | None:
    """The first stage is on the rank that has read the images."""
    return None if seat.images is None else image_port(seat.job, seat.images, seat.device)


def _labels(seat: Seat) -> Receiver[Target] | None:
    rounds, config = seat.job.messages("train", "evaluate"), seat.job.config
    if seat.rank != seat.job.topology.scoring_rank:
        return None
    return LabelSource(load_labels(config.data, config.seed), rounds, config.seed, seat.device)


def make_hop(job: Job, module: StageModule, number: int, device: torch.device) -> Hop:
    """The way of a test batch into and out of stage ``number``."""
    layout = job.topology
    own, last = layout.rank_of(number), layout.num_stages - 1
    from_afar = number > 0 and layout.rank_of(number - 1) != own
    to_afar = number < last and layout.rank_of(number + 1) != own
    return Hop(
        module,
        _receiving(job, number - 1, device) if from_afar else None,
        partial(send_to, layout.rank_of(number + 1)) if to_afar else None,
    )


def _receiving(job: Job, number: int, device: torch.device) -> Callable[[int], Tensor]:
    """Receives a test batch of stage ``number``."""
    source, shape, dtype = job.topology.rank_of(number), shape_of(job, number), wire_format(job, number)
    return lambda size: receive_from(source, torch.empty(size, *shape, dtype=dtype, device=device))


def wire_format(job: Job, number: int) -> torch.dtype:
    """The format of what stage ``number`` gives. Class scores stay where they are; gradients come back as the
    activations went."""
    return torch.float32 if number == job.topology.num_stages - 1 else job.alpha_dtype


def microbatch_size(job: Job) -> int:
    """Images in each of the equal parts of a batch."""
    return job.config.data.batch_size // job.config.pipeline.microbatches
