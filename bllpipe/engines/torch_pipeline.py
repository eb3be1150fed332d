"""Engines ``gpipe``, ``1f1b``, ``interleaved``, ``zbv``, ``dualpipev``: backpropagation through stages, in one of the
synchronous schedules of torch.distributed.pipelining. They share all but the order of the steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
from bllpipe.engines.job import Job, JobStore
from bllpipe.engines.pipeline_stages import Schedule, StageModule, build_stage_loop, microbatch_size, wire_format
from bllpipe.engines.synchronous import RankContext, StageTrainer, run_synchronous
from bllpipe.training.loops import Loop
from bllpipe.training.timing import Metered

# Made from one stage a rank, or from a list of two.
ONE_STAGE: dict[str, Callable[..., Any]] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
TWO_STAGES: dict[str, Callable[..., Any]] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}


def run(config: Config, options: Options) -> int:
    """Trains ``config`` together with the other ranks."""
    logging.getLogger("torch.distributed.pipelining").setLevel(
        logging.CRITICAL
    )  # the failing rank reports the error itself
    return run_synchronous(config, options, build_loop)


def build_loop(context: RankContext) -> tuple[Loop, list[Metered]]:
    """The loop of a rank."""
    return build_stage_loop(context, torch_schedule)


def torch_schedule(
    context: RankContext, trainer: StageTrainer, modules: Sequence[StageModule]
) -> tuple[Schedule, Sequence[object]]:
    """The schedule that the config names, with the stages of this rank."""
    numbers = context.job.topology.stages_of(context.rank)
    stages = [
        torch_stage(context.job, context.store, module, number, context.device)
        for number, module in zip(numbers, modules, strict=True)
    ]
    return make_schedule(context.job.config, stages, trainer), stages


def torch_stage(job: Job, store: JobStore, module: StageModule, number: int, device: torch.device) -> PipelineStage:
    """A stage for torch's schedules. It gets all shapes: to infer them it would pickle objects."""
    inputs = _message(job, store, number - 1) if number > 0 else _like_batch(job, job.spec.image_shape, torch.float32)
    return PipelineStage(
        module, number, job.topology.num_stages, device, input_args=inputs, output_args=_message(job, store, number)
    )


def _message(job: Job, store: JobStore, number: int) -> Tensor:
    """The output of stage ``number`` for a microbatch, without values; with a gradient, which torch must know."""
    return _like_batch(job, store.shape_of(number), wire_format(job, number)).requires_grad_()


def _like_batch(job: Job, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(microbatch_size(job), *shape, dtype=dtype, device="meta")


def make_schedule(config: Config, stages: Sequence[PipelineStage], trainer: StageTrainer) -> Schedule:
    """The schedule that ``config.engine`` names. It averages over the microbatches, whose losses are means
    themselves, so gradients are those of the mean over the batch."""
    microbatches = config.pipeline.microbatches
    if config.engine in ONE_STAGE:
        (stage,) = stages
        schedule: Schedule = ONE_STAGE[config.engine](stage, microbatches, trainer.loss)
    else:
        schedule = TWO_STAGES[config.engine](list(stages), microbatches, trainer.loss)
    return schedule
