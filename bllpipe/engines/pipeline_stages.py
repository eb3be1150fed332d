"""The stages of one rank of a synchronous pipeline: their inputs, their rounds of training and test, and the time that
they compute and wait. The schedule decides their order within a step.

Shapes: B images, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bllpipe.data.loader import LabelSource
from bllpipe.data.registry import load_labels
from bllpipe.distributed.process_group import add_up, receive_from, send_to
from bllpipe.engines.build import build_job_segment
from bllpipe.engines.job import Job, JobStore
from bllpipe.engines.ports import image_port
from bllpipe.engines.synchronous import RankContext, StageTrainer
from bllpipe.errors import BllpipeError
from bllpipe.learn.block import Outcome
from bllpipe.learn.memory_format import as_channels_last
from bllpipe.messages import Alpha, Receiver, Round, Target
from bllpipe.models.units import Segment, one_row_each
from bllpipe.training.instrument import wrap_method
from bllpipe.training.loops import LearnerLoop, Loop
from bllpipe.training.timing import Meter, Metered

COMPUTE = ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk")


class Schedule(Protocol):
    """A schedule of torch.distributed.pipelining. The rank with the first stage gives the images, the one with the
    last stage the labels; it gets ``losses``, one a microbatch, and class scores [B, K]. All others get None."""

    def step(self, *images: Tensor, target: Tensor | None = None, losses: list[Tensor] | None = None) -> Any: ...


class StageModule(nn.Module):
    """A segment as a schedule calls it: its output has the format of the wire, and both it and the gradient with
    respect to the input lie in memory as messages must. In between everything lies as ``channels_last`` says."""

    def __init__(
        self,
        segment: Segment,
        autocast: AbstractContextManager[Any],
        wire: torch.dtype,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.segment, self.autocast, self.wire, self.channels_last = segment, autocast, wire, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """The output of the stage before, [B, ...], to the message for the next one."""
        if x.requires_grad:
            x = x.view_as(x)  # not the leaf itself: zbv and dualpipev ask for its gradient without accumulating it
            x.register_hook(Tensor.contiguous)
        x = x.float()
        with self.autocast:
            alpha = one_row_each(self.segment(as_channels_last(x) if self.channels_last else x), x, self.segment)
        if self.channels_last and alpha.requires_grad:
            alpha.register_hook(as_channels_last)  # the incoming gradient is contiguous, as messages are
        return alpha.to(self.wire).contiguous()


@dataclass(frozen=True)
class StageLink:
    """A stage and its links for test batches: ``receive`` gets [size, ...] from the stage before, ``send`` passes it to
    the next one. None where that stage is on this rank too, or does not exist."""

    module: StageModule
    receive: Callable[[int], Tensor] | None
    send: Callable[[Tensor], None] | None


class StageLoop(LearnerLoop):
    """The stages of one rank, in order. ``images`` and ``labels`` are None where another rank has them. ``stages`` are
    torch's, whose methods a trace wraps.

    A test batch passes through them whole, without the schedule: torch's schedules can test only where no rank holds
    two adjacent stages (2.15: "can't steal_bwd_input"), and no batch that is smaller than the others.
    """

    def __init__(
        self,
        trainer: StageTrainer,
        schedule: Schedule,
        links: Sequence[StageLink],
        images: Receiver[Alpha] | None,
        labels: Receiver[Target] | None,
        stages: Sequence[object] = (),
    ) -> None:
        self.trainer, self.schedule, self.links, self.stages = trainer, schedule, links, list(stages)
        self.images, self.labels, self.learner = images, labels, trainer.learner

    def train(self, entry: Round) -> Outcome | None:
        self.trainer.mode(train=True)
        self.trainer.zero_grad()
        images = () if self.images is None else (self.images.recv().alpha_BCHW,)
        label_B, losses = self._next_labels(), list[Tensor]()
        scores_BK = self.schedule.step(*images, target=label_B, losses=losses)
        lr = self.trainer.step(entry.step)
        if label_B is None:
            return None
        return self.trainer.outcome(scores_BK, label_B, torch.stack(losses).mean(), lr)

    @torch.no_grad()
    def evaluate(self, entry: Round) -> Outcome | None:
        self.trainer.mode(train=False)
        x = torch.empty(0) if self.images is None else self.images.recv().alpha_BCHW
        for link in self.links:
            x = link.module(x if link.receive is None else link.receive(entry.size))
            if link.send is not None:
                link.send(x)
        label_B = self._next_labels()
        return None if label_B is None else self.trainer.outcome(x, label_B, self.trainer.loss(x, label_B))

    def _next_labels(self) -> Tensor | None:
        return None if self.labels is None else self.labels.recv().label_B


# The schedule for the stages of a rank, and the objects that compute in it, whose methods are timed and traced.
MakeSchedule = Callable[[RankContext, StageTrainer, Sequence[StageModule]], tuple[Schedule, Sequence[object]]]


def build_stage_loop(context: RankContext, make_schedule: MakeSchedule) -> tuple[Loop, list[Metered]]:
    """The loop of a rank. All ranks build theirs at the same time, as each stage gets its input shape from the one
    before."""
    job, store, config, device = context.job, context.store, context.job.config, context.device
    numbers = job.topology.stages_of(context.rank)
    segments = [build_job_segment(job, store, number, device, "stage") for number in numbers]
    trainer = StageTrainer(segments, config, job.schedule.total_steps, add_up)
    modules = [
        StageModule(segment, trainer.learner.autocast(), wire_format(job, number), trainer.channels_last)
        for number, segment in zip(numbers, segments, strict=True)
    ]
    schedule, stages = make_schedule(context, trainer, modules)
    timed = TimedSchedule(schedule, stages if device.type == "cpu" else (), sent_bytes(job, store, context.rank))
    links = [make_link(job, store, module, number, device) for number, module in zip(numbers, modules, strict=True)]
    images = labels = None
    if context.images is not None:
        images = image_port(job, context.images, device)
    if context.rank == job.topology.scoring_rank:
        rounds = job.rounds("train", "evaluate")
        labels = LabelSource(load_labels(config.data, config.seed), rounds, config.seed, device)
    return StageLoop(trainer, timed, links, images, labels, stages), [timed]


def sent_bytes(job: Job, store: JobStore, rank: int) -> int:
    """Bytes that a rank sends in a training step: outputs to the next stages, gradients of inputs to those before."""
    rank_of, total = job.topology.rank_of, 0
    for number in range(job.topology.num_stages - 1):
        ends = {rank_of(number), rank_of(number + 1)}
        if rank in ends and len(ends) == 2:
            total += job.config.data.batch_size * prod(store.shape_of(number)) * wire_format(job, number).itemsize
    return total


def make_link(job: Job, store: JobStore, module: StageModule, number: int, device: torch.device) -> StageLink:
    """The links of a test batch into and out of stage ``number``."""
    layout = job.topology
    own, last = layout.rank_of(number), layout.num_stages - 1
    receive = send = None
    if number > 0 and (source := layout.rank_of(number - 1)) != own:
        shape, dtype = store.shape_of(number - 1), wire_format(job, number - 1)

        def receive(size: int) -> Tensor:
            return receive_from(source, torch.empty(size, *shape, dtype=dtype, device=device))

    if number < last and (other := layout.rank_of(number + 1)) != own:
        send = partial(send_to, other)
    return StageLink(module, receive, send)


def wire_format(job: Job, number: int) -> torch.dtype:
    """The dtype of the output of stage ``number``. Class scores stay on their rank; gradients have the dtype of the
    activations."""
    return torch.float32 if number == job.topology.num_stages - 1 else job.alpha_dtype


def microbatch_size(job: Job) -> int:
    """Images in each of the equal parts of a batch."""
    return job.config.data.batch_size // job.config.pipeline.microbatches


class TimedSchedule:
    """A schedule that counts its bytes and its waiting time, as a port does for the stopwatch. It waits in a step while
    ``stages`` (torch's PipelineStage, or an object with some of its methods) do not compute. Without any the waiting
    time is unknown, as on GPUs, where computation is queued."""

    def __init__(self, schedule: Schedule, stages: Sequence[object], sent_bytes: int = 0) -> None:
        self._schedule, self.meter, self._computed = schedule, Meter("other stages"), 0.0
        self._sent_bytes, self._knows_waiting = sent_bytes, bool(stages)
        for stage in stages:
            for name in COMPUTE:
                if hasattr(stage, name):
                    wrap_method(stage, name, around=self._computing)

    def step(self, *images: Tensor, target: Tensor | None = None, losses: list[Tensor] | None = None) -> Any:
        start, computed = time.perf_counter(), self._computed
        try:
            scores = self._schedule.step(*images, target=target, losses=losses)
        except RuntimeError as error:  # torch's stages raise it in place of any error of a forward pass
            if isinstance(error.__cause__, BllpipeError):
                raise error.__cause__ from None
            raise
        if self._knows_waiting:
            self.meter.waited += time.perf_counter() - start - (self._computed - computed)
        self.meter.sent += self._sent_bytes
        return scores

    @contextmanager
    def _computing(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._computed += time.perf_counter() - start
