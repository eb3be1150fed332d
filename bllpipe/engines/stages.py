"""What the stages of one rank of a synchronous pipeline do in every round; their order within a step is the schedule's.

Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bllpipe.engines.share import Share
from bllpipe.learn.block import Outcome
from bllpipe.learn.placing import as_channels_last
from bllpipe.learn.units import Segment
from bllpipe.ports import Alpha, Receiver, Round, Target


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
class Hop:
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
        share: Share,
        schedule: Schedule,
        hops: Sequence[Hop],
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
