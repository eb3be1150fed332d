"""Engines ``gpipe``, ``1f1b``, ``interleaved``, ``zbv``, ``dualpipev``: backpropagation through stages, in one of the
synchronous schedules of torch.distributed.pipelining. They share all but the order of the steps."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from bllpipe.config import Config
from bllpipe.engines import Options
from bllpipe.engines.bubbles import TimedSchedule
from bllpipe.engines.edges import image_port
from bllpipe.engines.job import Job, shape_of
from bllpipe.engines.share import Share
from bllpipe.engines.stages import Hop, Schedule, StageLoop, StageModule
from bllpipe.engines.synchronous import Seat, run_synchronous
from bllpipe.errors import ConfigError
from bllpipe.learn.block import alpha_shape
from bllpipe.learn.cuts import cut
from bllpipe.learn.networks import network_units
from bllpipe.learn.units import Segment
from bllpipe.ports import Alpha, Receiver, Target
from bllpipe.run.data.sets import load_labels
from bllpipe.run.data.source import LabelSource
from bllpipe.run.loops import Loop
from bllpipe.run.timing import Metered
from bllpipe.wire.world import add_up, receive_from, send_to

# Made from one stage a rank, or from a list of two.
ONE_STAGE: dict[str, Callable[..., Any]] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
TWO_STAGES: dict[str, Callable[..., Any]] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}


def run(config: Config, options: Options) -> None:
    """Trains ``config`` together with the other ranks."""
    logging.getLogger("torch.distributed.pipelining").setLevel(logging.CRITICAL)  # the failing rank has said it better
    run_synchronous(config, options, build_loop)


def build_loop(seat: Seat) -> tuple[Loop, list[Metered]]:
    """The loop of a rank; all ranks build theirs at the same time, as each stage learns from the one before what it
    is given."""
    job, config, device = seat.job, seat.job.config, seat.device
    numbers = job.topology.stages_of(seat.rank)
    segments = [build_stage(job, number, device) for number in numbers]
    share = Share(segments, config, job.plan.total_steps, add_up)
    modules = [
        StageModule(segment, share.autocast(), wire_format(job, number))
        for number, segment in zip(numbers, segments, strict=True)
    ]
    stages = [torch_stage(job, module, number, device) for number, module in zip(numbers, modules, strict=True)]
    schedule, waits = _timed(make_schedule(config, stages, share), stages, device)
    hops = [make_hop(job, module, number, device) for number, module in zip(numbers, modules, strict=True)]
    return StageLoop(share, schedule, hops, _images(seat), _labels(seat), stages), waits


def _timed(schedule: Schedule, stages: Sequence[PipelineStage], device: torch.device) -> tuple[Schedule, list[Metered]]:
    if device.type != "cpu":
        return schedule, []
    timed = TimedSchedule(schedule, stages)
    return timed, [timed]


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


def build_stage(job: Job, number: int, device: torch.device) -> Segment:
    """Stage ``number`` of the network, on its device; tells the others the shape of its output."""
    config, is_last = job.config, number == job.topology.num_stages - 1
    units = network_units(config.model, job.spec.image_shape[0], job.spec.num_classes, config.seed)
    segment = Segment(cut(units, config.blocks)[number], config.seed).to(device)
    given = job.spec.image_shape if number == 0 else shape_of(job, number - 1)
    try:
        shape = alpha_shape(segment, given, device)
    except RuntimeError as error:
        raise ConfigError(
            f"stage {number} ({segment.last_unit} last) cannot take {list(given)} from the stage before it: {error}"
        ) from error
    if is_last and shape != (job.spec.num_classes,):
        raise ConfigError(
            f"the last stage gives {list(shape)} for each image; needed are {job.spec.num_classes} class scores"
        )
    job.store.set(f"shape/{number}", json.dumps(shape))
    return segment


def torch_stage(job: Job, module: StageModule, number: int, device: torch.device) -> PipelineStage:
    """A stage as torch's schedules want it. It is told all shapes: to find them out it would pickle objects."""
    given = _message(job, number - 1) if number > 0 else _like_batch(job, job.spec.image_shape, torch.float32)
    return PipelineStage(
        module, number, job.topology.num_stages, device, input_args=given, output_args=_message(job, number)
    )


def wire_format(job: Job, number: int) -> torch.dtype:
    """The format of what stage ``number`` gives. Class scores stay where they are; gradients come back as the
    activations went."""
    return torch.float32 if number == job.topology.num_stages - 1 else job.alpha_dtype


def _message(job: Job, number: int) -> Tensor:
    """What stage ``number`` gives for a microbatch, without values. It wants a gradient back, and torch must know."""
    return _like_batch(job, shape_of(job, number), wire_format(job, number)).requires_grad_()


def _like_batch(job: Job, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = job.config.data.batch_size // job.config.pipeline.microbatches
    return torch.empty(size, *shape, dtype=dtype, device="meta")


def make_schedule(config: Config, stages: Sequence[PipelineStage], share: Share) -> Schedule:
    """The schedule that ``config.engine`` names. It averages over the microbatches, whose losses are means
    themselves, so gradients are those of the mean over the batch."""
    microbatches = config.pipeline.microbatches
    if config.engine in ONE_STAGE:
        (stage,) = stages
        schedule: Schedule = ONE_STAGE[config.engine](stage, microbatches, share.loss)
    else:
        schedule = TWO_STAGES[config.engine](list(stages), microbatches, share.loss)
    return schedule
