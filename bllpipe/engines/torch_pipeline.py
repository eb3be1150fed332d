"""Engines ``gpipe``, ``1f1b``, ``interleaved``, ``zbv``, ``dualpipev``: backpropagation through stages, in one of the
synchronous schedules of torch.distributed.pipelining. They share all but the order of the steps.
"""

from __future__ import annotations

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
from bllpipe.engines.pipeline_stages import Schedule, StageModule, build_stage_loop, microbatch_size, wire_format
from bllpipe.engines.synchronous import RankContext, StageTrainer, run_synchronous

# Made from one stage a rank, or from a list of two.
ONE_STAGE: dict[str, Callable[..., Any]] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
TWO_STAGES: dict[str, Callable[..., Any]] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}


def run(config: Config, options: Options) -> int:
    """Trains ``config`` together with the other ranks."""
    # the failing rank reports the error itself
    logging.getLogger("torch.distributed.pipelining").setLevel(logging.CRITICAL)
    return run_synchronous(config, options, build_loop)


def torch_schedule(
    context: RankContext, trainer: StageTrainer, modules: Sequence[StageModule]
) -> tuple[Schedule, Sequence[object]]:
    """The schedule that the config names, with the stages of this rank. They get all shapes: to infer them torch would
    pickle objects."""
    job, store = context.job, context.store

    def like_output(number: int) -> Tensor:
        """The output of stage ``number`` for a microbatch, without values; with a gradient, which torch must know."""
        return like_batch(store.shape_of(number), wire_format(job, number)).requires_grad_()

    def like_batch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(microbatch_size(job), *shape, dtype=dtype, device="meta")

    stages = [
        PipelineStage(
            module,
            number,
            job.topology.num_stages,
            context.device,
            input_args=like_output(number - 1) if number > 0 else like_batch(job.spec.image_shape, torch.float32),
            output_args=like_output(number),
        )
        for number, module in zip(job.topology.stages_of(context.rank), modules, strict=True)
    ]
    return make_schedule(job.config, stages, trainer), stages


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


build_loop = partial(build_stage_loop, make_schedule=torch_schedule)
