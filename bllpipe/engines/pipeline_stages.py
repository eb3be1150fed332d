"""The stages of one rank of a synchronous pipeline: what they are given, what they do in every round and in a test, how
long they compute and wait. Their order within a step is the schedule's.

Shapes: B images, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from bllpipe.engines.build import build_segment
from bllpipe.engines.job import Job
from bllpipe.engines.ports import image_port
from bllpipe.engines.synchronous import RankContext, StageTrainer
from bllpipe.learn.block import Outcome
from bllpipe.learn.memory_format import as_channels_last
from bllpipe.messages import Alpha, Receiver, Round, Target
from bllpipe.models.units import Segment
from bllpipe.training.instrument import wrap_method
from bllpipe.training.loops import Loop
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
        """[B, ...] of the stage before to what the next one is sent."""
        if x.requires_grad:
            x = x.view_as(x)  # not the leaf itself: zbv and dualpipev ask for its gradient without accumulating it
            x.register_hook(Tensor.contiguous)
        x = x.float()
        with self.autocast:
            alpha: Tensor = self.segment(as_channels_last(x) if self.channels_last else x)
        if self.channels_last and alpha.requires_grad:
            alpha.register_hook(as_channels_last)  # the gradient that comes back lies as messages do
        return alpha.to(self.wire).contiguous()


@dataclass(frozen=True)
class StageLink:
    """A stage on the way of a test batch: how [size, ...] is received of the stage before and sent to the next one.
    None where that stage is on this rank too, or is none."""

    module: StageModule
    receive: Callable[[int], Tensor] | None
    send: Callable[[Tensor], None] | None


class StageLoop:
    """The stages of one rank, in order. ``images`` and ``labels`` are None where another rank has them. ``stages`` are
    torch's, at which a timeline looks.

    A test batch goes through them whole and by hand: torch's schedules can test only where no rank holds two
    neighbours (2.15: "can't steal_bwd_input"), and no batch that is smaller than the others.
    """

    def __init__(
        self,
        share: StageTrainer,
        schedule: Schedule,
        hops: Sequence[StageLink],
        images: Receiver[Alpha] | None,
        labels: Receiver[Target] | None,
        stages: Sequence[object] = (),
    ) -> None:
        self.share, self.schedule, self.hops, self.stages = share, schedule, hops, list(stages)
        self.images, self.labels = images, labels

    def run(self, entry: Round) -> Outcome | None:
        match entry.phase:
            case "train":
                return self._train(entry)
            case "evaluate":
                return self._evaluate(entry)
            case _:
                return None

    def _train(self, entry: Round) -> Outcome | None:
        self.share.mode(train=True)
        self.share.zero_grad()
        images = () if self.images is None else (self.images.recv().alpha_BCHW,)
        label_B, losses = self._next_labels(), list[Tensor]()
        scores_BK = self.schedule.step(*images, target=label_B, losses=losses)
        lr = self.share.step(entry.step)
        if label_B is None:
            return None
        return self.share.outcome(scores_BK, label_B, torch.stack(losses).mean(), lr)

    @torch.no_grad()
    def _evaluate(self, entry: Round) -> Outcome | None:
        self.share.mode(train=False)
        x = torch.empty(0) if self.images is None else self.images.recv().alpha_BCHW
        for hop in self.hops:
            x = hop.module(x if hop.receive is None else hop.receive(entry.size))
            if hop.send is not None:
                hop.send(x)
        label_B = self._next_labels()
        return None if label_B is None else self.share.outcome(x, label_B, self.share.loss(x, label_B))

    def _next_labels(self) -> Tensor | None:
        return None if self.labels is None else self.labels.recv().label_B

    def weights(self) -> dict[str, Tensor]:
        return self.share.learner.weights()

    def state(self) -> dict[str, Tensor]:
        return self.share.learner.state()

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        self.share.learner.load(state)


# The schedule for the stages of a rank, and the objects that compute in it: what a stopwatch and a timeline look at.
MakeSchedule = Callable[[RankContext, StageTrainer, Sequence[StageModule]], tuple[Schedule, Sequence[object]]]


def build_stage_loop(seat: RankContext, make_schedule: MakeSchedule) -> tuple[Loop, list[Metered]]:
    """The loop of a rank; all ranks build theirs at the same time, as each stage learns from the one before what it
    is given."""
    job, config, device = seat.job, seat.job.config, seat.device
    numbers = job.topology.stages_of(seat.rank)
    segments = [build_segment(job, number, device, "stage") for number in numbers]
    share = StageTrainer(segments, config, job.plan.total_steps, add_up)
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
            total += job.config.data.batch_size * prod(job.store.shape_of(number)) * wire_format(job, number).itemsize
    return total


def _images(seat: RankContext) -> Receiver[Alpha] | None:
    """The first stage is on the rank that has read the images."""
    return None if seat.images is None else image_port(seat.job, seat.images, seat.device)


def _labels(seat: RankContext) -> Receiver[Target] | None:
    rounds, config = seat.job.messages("train", "evaluate"), seat.job.config
    if seat.rank != seat.job.topology.scoring_rank:
        return None
    return LabelSource(load_labels(config.data, config.seed), rounds, config.seed, seat.device)


def make_hop(job: Job, module: StageModule, number: int, device: torch.device) -> StageLink:
    """The way of a test batch into and out of stage ``number``."""
    layout = job.topology
    own, last = layout.rank_of(number), layout.num_stages - 1
    from_afar = number > 0 and layout.rank_of(number - 1) != own
    to_afar = number < last and layout.rank_of(number + 1) != own
    return StageLink(
        module,
        _receiving(job, number - 1, device) if from_afar else None,
        partial(send_to, layout.rank_of(number + 1)) if to_afar else None,
    )


def _receiving(job: Job, number: int, device: torch.device) -> Callable[[int], Tensor]:
    """Receives a test batch of stage ``number``."""
    source, shape, dtype = job.topology.rank_of(number), job.store.shape_of(number), wire_format(job, number)
    return lambda size: receive_from(source, torch.empty(size, *shape, dtype=dtype, device=device))


def wire_format(job: Job, number: int) -> torch.dtype:
    """The format of what stage ``number`` gives. Class scores stay where they are; gradients come back as the
    activations went."""
    return torch.float32 if number == job.topology.num_stages - 1 else job.alpha_dtype


def microbatch_size(job: Job) -> int:
    """Images in each of the equal parts of a batch."""
    return job.config.data.batch_size // job.config.pipeline.microbatches


class TimedSchedule:
    """A schedule that adds up what it sends and waits, as a port does for the stopwatch. It waits in a step when
    ``stages`` (torch's PipelineStage, or what has some of these methods) do not compute; without any it is not known,
    as on GPUs, where computing is queued."""

    def __init__(self, schedule: Schedule, stages: Sequence[object], sent_bytes: int = 0) -> None:
        self._schedule, self.meter, self._computed = schedule, Meter("other stages"), 0.0
        self._sent_bytes, self._knows_waiting = sent_bytes, bool(stages)
        for stage in stages:
            for name in COMPUTE:
                if hasattr(stage, name):
                    wrap_method(stage, name, around=self._computing)

    def step(self, *images: Tensor, target: Tensor | None = None, losses: list[Tensor] | None = None) -> Any:
        start, computed = time.perf_counter(), self._computed
        scores = self._schedule.step(*images, target=target, losses=losses)
        if self._knows_waiting:
            self.meter.waited += time.perf_counter() - start - (self._computed - computed)
        self.meter.sent += self._sent_bytes
        return scores

    @contextmanager
    def _computing(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._computed += time.perf_counter() - start
